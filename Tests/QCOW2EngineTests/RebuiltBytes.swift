import BlockCore
import QCOW2Tools
import TestSupport

/// The bytes of a simulated file, as the tools want them.
final class RebuiltBytes: WritableImageBytes {
  private let bytes: TestSupport.ImageBytes
  init(_ bytes: TestSupport.ImageBytes) { self.bytes = bytes }

  var length: UInt64 { UInt64(bytes.length) }
  var isBlockDevice: Bool { false }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    guard let target = buffer.baseAddress else { return }
    let count = bytes.fits(Int(offset.bytes), buffer.count) ? buffer.count : 0
    buffer.initializeMemory(as: UInt8.self, repeating: 0)
    if count > 0 { bytes.read(into: target, count: count, at: Int(offset.bytes)) }
  }

  func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    guard bytes.fits(Int(offset.bytes), buffer.count), let source = buffer.baseAddress else {
      throw .host(.write(at: offset), errno: .fileTooBig)
    }
    bytes.write(source, count: buffer.count, at: Int(offset.bytes))
  }

  func setLength(_ length: UInt64) throws(ToolError) { bytes.setLength(Int(length)) }
  func allocate(_ length: UInt64) throws(ToolError) {}
  func sync() throws(ToolError) {}
}

/// Does with an image that is marked dirty what whoever attaches it does first.
///
/// - Returns: What went wrong.
func rebuildIfDirty(_ bytes: TestSupport.ImageBytes) -> String? {
  guard bytes.be32(4) >= 3, bytes.be64(72) & 1 == 1 else { return nil }
  do throws(ToolError) { _ = try RefcountRebuild.run(RebuiltBytes(bytes)) } catch {
    return "rebuild: \(error.message)"
  }
  return bytes.be64(72) & 1 == 1 ? "still dirty" : nil
}
