import BlockCore
import DiskImages
import QCOW2Engine

/// An open image as a job writes it, with a worker number of its own: whole requests, in plain memory.
///
/// Requests go to the engine itself: options of the disk that turn writes into others have no say.
struct JobDisk: Sendable {
  let image: DiskImage
  /// The worker number that the job has to itself.
  let worker: Int

  /// Runs `body` with the image.
  static func use<R: Sendable>(
    _ image: DiskImage, _ body: @Sendable (JobDisk) async throws(JobError) -> R
  ) async throws(JobError) -> R {
    try await image.engine.withJobSlot { (slot) async throws(JobError) in
      try await body(JobDisk(image: image, worker: slot.worker))
    }
  }

  /// Carries out a request in the job's request slot `number`.
  ///
  /// - Throws: ``JobError/reading(disk:at:_:)`` or ``JobError/writing(disk:at:_:)``.
  func serve(_ request: BlockRequest, _ number: Int) async throws(JobError) {
    let slot = RequestSlot(worker: worker, number: number)
    if let errno = await image.engine.serve(request, at: slot).errno {
      throw request.operation == .read
        ? .reading(disk: image.name, at: request.offset.bytes, errno)
        : .writing(disk: image.name, at: request.offset.bytes, errno)
    }
  }

  /// Makes everything durable.
  func flush() async throws(JobError) { try await serve(BlockRequest(.flush), 0) }
}
