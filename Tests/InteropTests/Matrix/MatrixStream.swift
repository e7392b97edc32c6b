import BlockCore
import TestTools

/// The same requests for both sides.
struct MatrixStream: Sendable {
  /// Requests of one batch do not overlap: we serve them at once, qemu-io one by one.
  private(set) var batches: [[GuestOperation]] = []
  /// Zeroes at the end what a discard of the one side may have zeroed and of the other not.
  private(set) var settling: [GuestOperation] = []
  private let chosen: MatrixCase
  private let diskSize: UInt64

  init(
    _ source: inout OperationSource, _ random: inout SeededGenerator, _ chosen: MatrixCase,
    diskSize: UInt64, batches count: Int
  ) {
    self.chosen = chosen
    self.diskSize = diskSize
    for _ in 0..<count {
      let batch = source.batch(Int.random(in: 1...8, using: &random)).compactMap(fitted)
      batches.append(batch)
      settling += batch.compactMap(settled)
    }
  }

  /// A request of which it is known what it does.
  ///
  /// Of a compressed cluster with subclusters we discard none, QEMU all: it is discarded whole.
  private func fitted(_ operation: GuestOperation) -> GuestOperation? {
    guard operation.kind == .discard, chosen.isExtended, chosen.contents != .plain else {
      return operation
    }
    var whole = operation
    whole.range = operation.discarded(unit: chosen.clusterSize, diskSize: diskSize)
    return whole.range.isEmpty ? nil : whole
  }

  /// The zeroing that makes both sides the same after a discard: we let go of whole subclusters,
  /// QEMU of whole clusters.
  private func settled(_ operation: GuestOperation) -> GuestOperation? {
    guard operation.kind == .discard else { return nil }
    let ours = operation.discarded(unit: chosen.subclusterSize, diskSize: diskSize)
    let theirs = operation.discarded(unit: chosen.clusterSize, diskSize: diskSize)
    if ours == theirs { return nil }
    return GuestOperation(kind: .writeZeroes, range: ours)
  }

  /// All of it in qemu-io's words; the data of writes goes to files in `scratch`.
  func commands(_ scratch: Scratch, _ random: inout SeededGenerator) throws -> [String] {
    try (batches.joined() + settling).map { try command($0, scratch, &random) }
  }

  private func command(
    _ operation: GuestOperation, _ scratch: Scratch, _ random: inout SeededGenerator
  ) throws -> String {
    let place = "\(operation.range.lowerBound) \(operation.range.count)"
    let fua = operation.isFUA ? "-f " : ""
    switch operation.kind {
    case .write: return "write \(fua)-s \(try scratch.data(of: operation)) \(place)"
    case .writeZeroes:
      return "write -z \(fua)\(operation.keepsAllocation ? "" : "-u ")\(place)"
    case .discard: return "discard \(place)"
    case .flush: return "flush"
    case .read: return "read \(place)"
    }
  }
}

extension Scratch {
  /// A file with the data of a write.
  func data(of operation: GuestOperation) throws -> String {
    let path = file("data.\(operation.stamp)")
    let target = try Shadow(path, size: UInt64(operation.range.count))
    let buffer = IOBuffer(count: operation.range.count)
    operation.fill(buffer)
    try target.write(UnsafeRawBufferPointer(start: buffer.base, count: buffer.count), at: 0)
    withExtendedLifetime(buffer) {}
    return path
  }

  /// Removes the files with the data of writes.
  func removeData() throws { try mustRun("find", path, "-name", "data.*", "-delete") }
}
