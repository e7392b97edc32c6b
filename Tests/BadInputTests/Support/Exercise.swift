import BlockCore
import QCOW2Engine
import QCOW2Format

/// Reads and writes an image that may be nonsense, within bounds of time and memory.
struct Exercise {
  /// The bytes of one read.
  static let chunk: UInt64 = 8192
  /// Reads at most.
  static let readLimit = 192

  let image: Image

  /// What a read gave: data, or an errno.
  typealias Answers = [UInt64: Result<[UInt8], Errno>]

  /// The places to read: everything on a small disk; on a large one the start, the end, and the
  /// start of what each of the first L1 entries maps.
  var places: [UInt64] {
    let size = image.size
    if size <= Self.chunk * UInt64(Self.readLimit) {
      return Array(stride(from: 0, to: size, by: Int(Self.chunk)))
    }
    var places = Set((0..<16).map { UInt64($0) * Self.chunk })
    places.insert((size - 1) / Self.chunk * Self.chunk)
    let perTable = image.geometry.bytesPerL2Table
    for index in 0..<64 where UInt64(index) < size / perTable {
      let start = UInt64(index) * perTable
      places.insert(start / Self.chunk * Self.chunk)
      places.insert((start + perTable / 2) / Self.chunk * Self.chunk)
    }
    return places.filter { $0 < size }.sorted()
  }

  /// Reads at all ``places``.
  func readAll() async -> Answers {
    var answers: Answers = [:]
    for place in places { answers[place] = await read(place) }
    return answers
  }

  private func read(_ offset: UInt64) async -> Result<[UInt8], Errno> {
    let count = min(Self.chunk, image.size - offset)
    let buffer = IOBuffer(count: Int(count))
    let request = BlockRequest(
      .read, offset: GuestOffset(offset), length: count, data: buffer.data)
    if let errno = await serve(request) { return .failure(errno) }
    return .success(Array(UnsafeRawBufferPointer(start: buffer.base, count: Int(count))))
  }

  private func serve(_ request: BlockRequest) async -> Errno? {
    var transfer = HostTransfer(
      kind: .zeroes, length: 0, dataOffset: 0, hostOffset: HostOffset(0))
    // The plan is made for what it may trap on; the service does the work.
    let planned = withUnsafeMutablePointer(to: &transfer) {
      image.plan(
        request, at: RequestSlot(worker: 0, number: 1),
        into: UnsafeMutableBufferPointer(start: $0, count: 1))
    }
    if case .transfers = planned {
      _ = image.finish(at: RequestSlot(worker: 0, number: 1), failed: true)
    }
    return await image.serve(request, at: RequestSlot(worker: 0, number: 0)).errno
  }

  /// Writes `byte` over `range`, which must lie inside the disk.
  func write(_ byte: UInt8, _ range: Range<UInt64>) async -> Errno? {
    let buffer = IOBuffer(count: range.count)
    buffer.base.initializeMemory(as: UInt8.self, repeating: byte, count: range.count)
    return await serve(
      BlockRequest(
        .write, offset: GuestOffset(range.lowerBound), length: UInt64(range.count),
        data: buffer.data))
  }

  /// A discard, a write-zeroes or a flush.
  func ask(
    _ operation: BlockOperation, _ range: Range<UInt64> = 0..<0, keepsAllocation: Bool = false
  ) async -> Errno? {
    await serve(
      BlockRequest(
        operation, offset: GuestOffset(range.lowerBound), length: UInt64(range.count),
        keepsAllocation: keepsAllocation))
  }
}
