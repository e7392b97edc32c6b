import BlockCore
package import DiskImages
package import JSON
package import QCOW2Engine
import QCOW2Format
package import QCOW2Tools

/// Another virtual size for a disk: `resize`, and `truncate` of `qublk io`.
///
/// What is added reads as zeros, and what is cut off is gone. The size changes in one step: a crash leaves
/// the old size or the new one. What is added gets its places after that; if they cannot be had, or the job
/// is cancelled, the disk gets its old size back. Where a device shows the disk, it is told the new size in
/// the end, also if the disk had that size before.
package struct ResizeJob: DiskJob {
  package static let name = "resize"
  package var changesImage: Bool { true }
  /// The new size.
  package var amount: SizeChange.Amount
  /// Whether the disk may become smaller.
  package var mayShrink: Bool
  /// What the added part gets in advance.
  package var preallocation: Preallocation

  /// The job.
  package init(
    _ amount: SizeChange.Amount, mayShrink: Bool = false, preallocation: Preallocation = .off
  ) {
    self.amount = amount
    self.mayShrink = mayShrink
    self.preallocation = preallocation
  }

  /// The job that gives a disk `size` bytes, fewer than now or more.
  package init(size: UInt64) { self.init(.exactly(size), mayShrink: true) }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    let exactly = try arguments.unsigned("size")
    let more = try arguments.unsigned("grow-by")
    let less = try arguments.unsigned("shrink-by")
    switch (exactly, more, less) {
    case (let size?, nil, nil): amount = .exactly(size)
    case (nil, let bytes?, nil): amount = .more(bytes)
    case (nil, nil, let bytes?): amount = .less(bytes)
    default: throw .arguments("give one of \"size\", \"grow-by\" and \"shrink-by\"")
    }
    mayShrink = try arguments.bool("may-shrink") ?? false
    preallocation = try arguments.word("preallocation", Preallocation.self) ?? .off
  }

  package var arguments: JSONValue {
    let size: JSONValue.Member =
      switch amount {
      case .exactly(let bytes): .init("size", .number(bytes))
      case .more(let bytes): .init("grow-by", .number(bytes))
      case .less(let bytes): .init("shrink-by", .number(bytes))
      }
    return .object([
      size, .init("may-shrink", .bool(mayShrink)),
      .init("preallocation", .string(preallocation.rawValue)),
    ])
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    try context.capacity?.requireChangeable()
    let step =
      switch disk {
      case let disk as DiskImage: try await resize(disk.engine, context)
      case let disk as RawDisk: try await resize(disk.raw, context)
      default: throw .format(needed: .qcow2)
      }
    try context.capacity?.set(bytes: step.new)
    return NoValue()
  }

  private func change(_ context: JobContext<NoValue>) -> SizeChange {
    let shrinking: SizeChange.Shrinking =
      if context.capacity != nil { .served } else { mayShrink ? .allowed : .notAsked }
    return SizeChange(
      amount, shrinking: shrinking, mustGrow: preallocation != .off)
  }

  // MARK: qcow2

  private func resize(
    _ image: Image, _ context: JobContext<NoValue>
  ) async throws(JobError) -> SizeStep {
    let step: SizeStep
    do throws(ImageError) { step = try await image.resize(change(context)) } catch {
      throw .image(error)
    }
    guard step.new > step.old, let places = preallocation.places else { return step }
    do throws(JobError) { try await fill(step, places, image, context) } catch {
      // Nobody has seen the added part yet, and what it got in advance goes with it.
      do throws(ImageError) { try await image.resize(to: step.old) } catch {
        context.tell(.note("the disk keeps its new size of \(step.new): \(error.message)"))
      }
      throw error
    }
    return step
  }

  /// Gives the added part its places, from the first whole cluster on.
  private func fill(
    _ step: SizeStep, _ places: PlacesInAdvance, _ image: Image, _ context: JobContext<NoValue>
  ) async throws(JobError) {
    let zeros = IOBuffer(count: Self.pieceBytes)
    defer { withExtendedLifetime(zeros) {} }
    let mask = image.geometry.clusterMask
    var next = (step.old + mask) & ~mask
    context.progress.begin(step.new - step.old, .bytes)
    try await image.withJobSlot { (slot) async throws(JobError) in
      while next < step.new {
        let end = min(step.new, next + Self.stepBytes)
        do throws(ImageError) {
          next += try await image.preallocate(
            next..<end, places, zeros: zeros.data, in: slot)
        } catch { throw .image(error) }
        context.progress.reach(min(next, step.new) - step.old)
        try await context.checkpoint(places == .written ? UInt64(Self.pieceBytes) : 0)
      }
    }
    do throws(ImageError) { try await image.flush() } catch { throw .image(error) }
  }

  /// The bytes of zeros that are written at once.
  private static let pieceBytes = 1 << 20
  /// The most bytes that get their places between two looks for a cancellation.
  private static let stepBytes: UInt64 = 256 << 20

  // MARK: raw

  private func resize(
    _ disk: RawTarget, _ context: JobContext<NoValue>
  ) async throws(JobError) -> SizeStep {
    guard preallocation != .metadata else {
      throw .arguments(
        "preallocation is \"metadata\", which a raw disk has none of: expected off, falloc or full")
    }
    let step: SizeStep
    do throws(ImageError) {
      let old = disk.size
      step = SizeStep(old: old, new: try change(context).size(from: old))
      guard step.new & 511 == 0 else { throw .cannotResize(to: step.new, .partialSector) }
      if step.new == old { return step }
      guard !disk.isBlockDevice else { throw .cannotResize(to: step.new, .blockDevice) }
    } catch { throw .image(error) }
    do throws(Errno) { try await disk.resize(to: step.new) } catch { throw .raw(error) }
    do throws(JobError) {
      if preallocation != .off { try await fill(step, disk, context) }
    } catch {
      // Nobody has seen the added part yet.
      try? await disk.resize(to: step.old)
      throw error
    }
    do throws(Errno) { try await disk.flush() } catch { throw .raw(error) }
    return step
  }

  private func fill(
    _ step: SizeStep, _ disk: RawTarget, _ context: JobContext<NoValue>
  ) async throws(JobError) {
    context.progress.begin(step.new - step.old, .bytes)
    var next = step.old
    while next < step.new {
      let end = min(step.new, next + Self.stepBytes)
      do throws(Errno) {
        try await disk.provideStorage(next..<end, writesZeros: preallocation == .full)
      } catch { throw .raw(error) }
      next = end
      context.progress.reach(next - step.old)
      try await context.checkpoint()
    }
  }
}

extension Preallocation {
  /// What a guest range gets in advance; nil for nothing.
  fileprivate var places: PlacesInAdvance? {
    switch self {
    case .off: nil
    case .metadata: .mapped
    case .falloc: .stored
    case .full: .written
    }
  }
}
