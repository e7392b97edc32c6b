import BlockCore
import CPlatform
import Glibc
import QCOW2Tools

extension DiskFormat {
  /// What the first bytes of a file say that it is; for commands whose user did not.
  ///
  /// A file is raw unless its first bytes are those of a qcow2 image of version 2 or later.
  ///
  /// - Parameter path: The file.
  /// - Returns: The format.
  /// - Throws: ``OpeningError`` for a file of a format that qublk does not have, and for one that cannot
  ///   be read.
  package static func probe(_ path: String) throws(OpeningError) -> DiskFormat {
    let descriptor = unsafe qublk_open(path, 1, 0)
    guard descriptor >= 0 else {
      throw OpeningError("Could not open '\(path)': \(Errno(-descriptor).systemText)")
    }
    defer { close(descriptor) }
    var head = [UInt8](repeating: 0, count: 512)
    let count = unsafe pread(descriptor, &head, head.count, 0)
    guard count >= 0 else {
      throw OpeningError("Could not read '\(path)': \(Errno(errno).systemText)")
    }
    return try format(of: Array(head[..<count]), path)
  }

  /// What bytes at the start of a file say.
  package static func format(of head: [UInt8], _ path: String) throws(OpeningError) -> DiskFormat {
    if head.starts(with: [0x51, 0x46, 0x49, 0xfb]) {  // "QFI\xfb"
      if head.count >= 8, head[4...7].elementsEqual([0, 0, 0, 1]) {
        throw foreign(path, "a qcow image of version 1")
      }
      return .qcow2
    }
    if head.starts(with: ImageCreate.incompleteMagic) {
      throw OpeningError(
        "\(path): it is an image that a conversion has not finished: convert again")
    }
    for (offset, bytes, name) in foreignSignatures {
      if head.dropFirst(offset).starts(with: bytes) { throw foreign(path, name) }
    }
    return .raw
  }

  private static func foreign(_ path: String, _ name: String) -> OpeningError {
    OpeningError(
      "\(path): it looks like \(name), expected qcow2 or raw: convert it with qemu-img first, or say "
        + "\"-f raw\" to take its bytes as they are")
  }

  /// Where other formats have their names.
  private static let foreignSignatures: [(offset: Int, bytes: [UInt8], name: String)] = [
    (0, Array("KDMV".utf8), "a VMDK image"), (0, Array("COWD".utf8), "a VMDK image"),
    (0, Array("# Disk DescriptorFile".utf8), "a VMDK image"),
    (0, Array("vhdxfile".utf8), "a VHDX image"), (0, Array("conectix".utf8), "a VHD image"),
    (0, Array("QED\0".utf8), "a QED image"),
    (0, Array("WithoutFreeSpace".utf8), "a Parallels image"),
    (0, Array("WithouFreSpacExt".utf8), "a Parallels image"),
    (64, [0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
    (0, Array("Bochs Virtual HD Image".utf8), "a Bochs image"),
  ]
}
