import BlockCore
import HostFiles
import QCOW2Engine
import Uring
import TestTools

/// Opens an image of the file system with our engine, once, and returns what came of it.
///
/// - Parameters:
///   - path: The image.
///   - readOnly: Never writes to it.
///   - body: What to do with the open image; it is closed afterwards.
/// - Throws: Whatever kept it from being opened or closed, or `body` throws.
func openImage(
  _ path: String, readOnly: Bool, _ body: @escaping (Image) async throws -> Void = { _ in }
) throws {
  try runBlocking { () async throws(any Error) in
    var options = ImageOptions()
    options.readOnly = readOnly
    let file = try RingHostFile.open(path, readOnly: readOnly)
    let image = try await Image.open(file, options: options)
    try await body(image)
    try await image.close()
  }
}

/// What keeps our engine from opening the image; nil if nothing does.
func openFailure(_ path: String, readOnly: Bool) -> (any Error)? {
  do {
    try openImage(path, readOnly: readOnly)
    return nil
  } catch {
    return error
  }
}

/// What keeps our engine from opening the image, as the error line says it.
func openMessage(_ path: String, readOnly: Bool) -> String? {
  openFailure(path, readOnly: readOnly).map { ($0 as? ImageError)?.message ?? "\($0)" }
}

extension Image {
  /// Writes `count` bytes of a pattern at `offset`, and flushes.
  func writePattern(_ byte: UInt8, at offset: UInt64, count: Int) async throws {
    let buffer = IOBuffer(count: count)
    buffer.base.initializeMemory(as: UInt8.self, repeating: byte, count: count)
    let request = BlockRequest(
      .write, offset: GuestOffset(offset), length: UInt64(count), data: buffer.data, isFUA: true)
    if let errno = await serve(request, at: RequestSlot(worker: 0, number: 0)).errno { throw errno }
  }
}

/// An image in a scratch directory, made by qemu-img with `options`.
func makeImage(_ scratch: Scratch, _ options: String, size: String = "8M") throws -> String {
  let path = scratch.file("image.qcow2")
  try mustRun("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size)
  return path
}
