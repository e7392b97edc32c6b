import BlockCore
import HostFiles
import Synchronization

/// A disk as plain as can be, guest offset = host offset, yet with both paths of a real one: a
/// cluster that was never written reads as zeros without I/O, and its first write is a slow one.
@safe final class FileTarget: BlockTarget, @unchecked Sendable {
  // why: `written` is made once; its elements are atomics.
  static let clusterSize: UInt64 = 65536

  let size: UInt64
  private let file: RingHostFile
  private let written: UnsafeMutablePointer<Atomic<Bool>>
  /// Every so many requests, one takes the slow path without need; 0 for never.
  private let slowEvery: Int
  private let planned = Atomic<Int>(0)
  private let finished = Atomic<Int>(0)

  init(file: RingHostFile, size: UInt64, slowEvery: Int) {
    self.file = file
    self.size = size
    self.slowEvery = slowEvery
    let clusters = Int((size + Self.clusterSize - 1) / Self.clusterSize)
    written = .allocate(capacity: clusters)
    for cluster in 0..<clusters { (written + cluster).initialize(to: Atomic(false)) }
  }

  /// Plans that were answered with transfers and have not been finished.
  var unfinished: Int { planned.load(ordering: .relaxed) - finished.load(ordering: .relaxed) }

  func plan(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    guard request.operation == .read || request.operation == .write else { return .needsService }
    if slowEvery > 0, Int(request.offset.bytes / 4096) % slowEvery == 0 { return .needsService }
    var count = 0
    var done: UInt64 = 0
    while done < request.length {
      let position = request.offset.bytes + done
      let isWritten = isWritten(position)
      if !isWritten && request.operation == .write { return .needsService }
      let length = runLength(position, request.length - done, isWritten)
      guard count < plan.count else { return .needsService }
      plan[count] = HostTransfer(
        kind: isWritten ? .file : .zeroes, length: UInt32(length), dataOffset: UInt32(done),
        hostOffset: HostOffset(position))
      count += 1
      done += length
    }
    planned.add(1, ordering: .relaxed)
    return .transfers(count: count)
  }

  func finish(worker: Int, slot: Int, failed: Bool) -> FinishResult {
    finished.add(1, ordering: .relaxed)
    return .done
  }

  func serve(_ request: BlockRequest, worker: Int, slot: Int) async -> ServiceResult {
    let host = HostOffset(request.offset.bytes)
    do throws(Errno) {
      switch request.operation {
      case .read: try await file.read(into: request.data, at: host)
      case .write:
        try await file.write(from: request.data, at: host)
        mark(request, true)
        if request.isFUA { try await file.sync() }
      case .flush: try await file.sync()
      case .discard:
        try await file.writeZeroes(at: host, length: request.length)
        mark(request, false)
      case .writeZeroes:
        try await file.writeZeroes(at: host, length: request.length)
        if request.isFUA { try await file.sync() }
      }
      return .done
    } catch { return .failed(error) }
  }

  private func isWritten(_ position: UInt64) -> Bool {
    written[Int(position / Self.clusterSize)].load(ordering: .acquiring)
  }

  /// The bytes from `position` on, at most `limit`, with the same state.
  private func runLength(_ position: UInt64, _ limit: UInt64, _ state: Bool) -> UInt64 {
    var length = min(limit, Self.clusterSize - position % Self.clusterSize)
    while length < limit, isWritten(position + length) == state {
      length = min(limit, length + Self.clusterSize)
    }
    return length
  }

  /// Marks clusters: as written if touched, as unwritten only if wholly covered.
  private func mark(_ request: BlockRequest, _ state: Bool) {
    let (start, end) = (request.offset.bytes, request.offset.bytes + request.length)
    let unit = Self.clusterSize
    var cluster = state ? start / unit : (start + unit - 1) / unit
    let last = state ? (end - 1) / unit + 1 : end / unit
    while cluster < last {
      written[Int(cluster)].store(state, ordering: .releasing)
      cluster += 1
    }
  }
}
