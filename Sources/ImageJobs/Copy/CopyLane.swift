import BlockCore
import DiskImages
import HostFiles
import Serving

/// What one thread of a copy has for itself: requests with its worker number, and memory for each task.
///
/// Confined to its thread.
final class CopyLane: @unchecked Sendable {  // why: confined to one thread
  private let copy: DiskCopy
  private let policy: CopyPolicy
  private let scanner: CopyScanner
  private let target: FileRequests
  private let sources: [FileRequests]
  private let offload: HostCopy?
  private let plain: PlainCopy?
  private let onSalvage: @Sendable (UInt64, Errno) -> Void
  private var buffers: [Int: IOBuffer] = [:]

  init(
    _ copy: DiskCopy, _ scanner: CopyScanner, _ plain: PlainCopy?, thread: Int,
    onSalvage: @escaping @Sendable (UInt64, Errno) -> Void
  ) {
    self.copy = copy
    self.scanner = scanner
    self.onSalvage = onSalvage
    policy = copy.policy
    target = FileRequests(copy.target, worker: thread)
    sources = copy.sources.map { FileRequests($0.disk, worker: thread) }
    offload = copy.policy.offloads ? HostCopy(copy) : nil
    self.plain = plain
  }

  /// Copies one range.
  func copy(_ range: CopyRange, task: Int) async throws(JobError) {
    switch range.kind {
    case .nothing: return
    case .zeroes where policy.sparse > 0:
      if !policy.targetIsZero { try await zero(range.offset, range.length, task) }
    case .zeroes: try await write(zeroes(task, range.length), at: range.offset, task)
    case .data:
      if let offload, try await offload.copy(range, scanner) { return }
      if let plain, plain.isPossible, try await copy(range, by: plain, task) { return }
      try await copyThroughMemory(range.offset, range.length, task)
    }
  }

  private func copyThroughMemory(
    _ offset: UInt64, _ length: UInt64, _ task: Int
  ) async throws(JobError) {
    let data = buffer(task).data.slice(0, Int(length))
    try await read(into: data, offset, task)
    try await write(data, at: offset, sparse: policy.sparse, task)
  }

  /// Copies what is plain data from file to file, and the rest through memory.
  ///
  /// - Returns: false if nothing has been copied.
  private func copy(
    _ range: CopyRange, by plain: PlainCopy, _ task: Int
  ) async throws(JobError) -> Bool {
    let parts = scanner.parts(range.offset, range.length)
    guard parts.count == 1, let part = parts.first else { return false }
    let source = copy.sources[part.source]
    let start = source.offset + part.offset
    guard start & 511 == 0, part.offset + part.length <= source.count,
      let places = await plain.places(
        sources[part.source], source.disk.files, start..<start + part.length, slot: task)
    else { return false }
    if source.disk.files.contains(where: { !$0.isInMemory }) { plain.prefetch(places) }
    let unit = policy.sparse > 0 ? zeroUnit : 0
    for run in plain.runs(places, at: range.offset, unit: unit) {
      let offset = range.offset + UInt64(run.range.lowerBound)
      if !run.isZero,
        await plain.move(
          run.range, of: places, to: offset, target, slot: task, buffer(task))
      {
        continue
      }
      try await copyThroughMemory(offset, UInt64(run.range.count), task)
    }
    return true
  }

  /// The bytes that are zeros or data as a whole.
  private var zeroUnit: UInt64 {
    max(policy.unit, UInt64(1) << (63 - policy.sparse.leadingZeroBitCount))
  }

  // MARK: Reading

  private func read(
    into data: DataBuffer, _ offset: UInt64, _ task: Int
  ) async throws(JobError) {
    var done: UInt64 = 0
    for part in scanner.parts(offset, UInt64(data.count)) {
      try await read(part, into: data.slice(Int(done), Int(part.length)), offset + done, task)
      done += part.length
    }
  }

  private func read(
    _ part: (source: Int, offset: UInt64, length: UInt64), into data: DataBuffer,
    _ place: UInt64, _ task: Int
  ) async throws(JobError) {
    let source = copy.sources[part.source]
    guard let errno = await read(part, of: source, into: data, task) else { return }
    guard policy.salvages else {
      throw .reading(disk: source.disk.name, at: source.offset + part.offset, errno)
    }
    guard part.length > 512 else {
      onSalvage(place, errno)
      if let memory = unsafe data.memory {
        unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
      }
      return
    }
    // Halves, until the bad sectors are found.
    let half = part.length / 1024 * 512
    try await read(
      (part.source, part.offset, half), into: data.slice(0, Int(half)), place, task)
    try await read(
      (part.source, part.offset + half, part.length - half),
      into: data.slice(Int(half), data.count - Int(half)), place + half, task)
  }

  /// Reads whole sectors; those of a part that begins or ends within one go through other memory.
  private func read(
    _ part: (source: Int, offset: UInt64, length: UInt64), of source: CopySource,
    into data: DataBuffer, _ task: Int
  ) async -> Errno? {
    let start = source.offset + part.offset
    let count = min(part.length, source.count - min(part.offset, source.count))
    if start & 511 == 0, count == part.length {
      let request = BlockRequest(
        .read, offset: GuestOffset(start), length: count, data: data)
      return await sources[part.source].perform(request, slot: task)
    }
    let skipped = Int(start & 511)
    let sectors = IOBuffer(count: (skipped + Int(count) + 511) & ~511)
    defer { withExtendedLifetime(sectors) {} }
    let request = BlockRequest(
      .read, offset: GuestOffset(start & ~511), length: UInt64(sectors.count),
      data: sectors.data)
    if let errno = await sources[part.source].perform(request, slot: task) { return errno }
    if let memory = unsafe data.memory {
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
      unsafe memory.copyMemory(from: sectors.base + skipped, byteCount: Int(count))
    }
    return nil
  }

  // MARK: Writing

  private func write(
    _ data: DataBuffer, at offset: UInt64, sparse: UInt64, _ task: Int
  ) async throws(JobError) {
    guard sparse > 0, let memory = unsafe data.memory else {
      return try await write(data, at: offset, task)
    }
    let runs = unsafe ZeroScan.runs(
      UnsafeRawBufferPointer(start: memory, count: data.count), at: offset, unit: zeroUnit,
      least: sparse)
    for run in runs {
      let place = offset + UInt64(run.range.lowerBound)
      if !run.isZero {
        try await write(data.slice(run.range.lowerBound, run.range.count), at: place, task)
      } else if !policy.targetIsZero {
        try await zero(place, UInt64(run.range.count), task)
      }
    }
  }

  private func write(
    _ data: DataBuffer, at offset: UInt64, _ task: Int
  ) async throws(JobError) {
    var request = BlockRequest(
      .write, offset: GuestOffset(offset), length: UInt64(data.count), data: data)
    request.compresses = policy.compresses
    if let errno = await target.perform(request, slot: task) {
      throw .writing(disk: copy.target.name, at: offset, errno)
    }
  }

  private func zero(_ offset: UInt64, _ length: UInt64, _ task: Int) async throws(JobError) {
    let request = BlockRequest(.writeZeroes, offset: GuestOffset(offset), length: length)
    if let errno = await target.perform(request, slot: task) {
      throw .writing(disk: copy.target.name, at: offset, errno)
    }
  }

  // MARK: Memory

  private func buffer(_ task: Int) -> IOBuffer {
    if let buffer = buffers[task] { return buffer }
    let buffer = IOBuffer(count: Int(max(policy.chunk, policy.unit)))
    buffers[task] = buffer
    return buffer
  }

  private func zeroes(_ task: Int, _ length: UInt64) -> DataBuffer {
    let data = buffer(task).data.slice(0, Int(length))
    if let memory = unsafe data.memory {
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
    }
    return data
  }
}

extension FileRequests {
  /// Requests to a disk that count as those of one of its workers.
  convenience init(_ disk: any OpenDisk, worker: Int) {
    self.init(disk.target, files: disk.files, worker: worker)
  }
}
