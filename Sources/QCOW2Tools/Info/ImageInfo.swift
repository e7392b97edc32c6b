import BlockCore
import QCOW2Codec
import QCOW2Format

/// Everything that `info` shows of an image.
///
/// Nothing that the image refers to is opened [SEC-1].
package struct ImageInfo {
  /// What is shown of encryption.
  enum Encryption: Equatable {
    case aes
    case luks(LUKSFields)
  }

  /// As it was given on the command line.
  let path: String
  /// Storage that the host has given to the file, in bytes.
  let diskSize: UInt64
  /// In bytes.
  let fileLength: UInt64
  let header: Header
  let virtualSize: UInt64
  let backingFile: String?
  let backingFormat: String?
  let dataFile: String?
  let snapshots: [Snapshot]
  let bitmaps: [BitmapDirectory.Item]
  let encryption: Encryption?
  /// What is not shown, and why.
  package let warnings: [String]

  /// Reads what is shown.
  ///
  /// - Parameters:
  ///   - bytes: The image.
  ///   - path: The image's path, for the text and to resolve a relative backing file.
  ///   - allocatedBytes: The storage that the host has given to the file.
  /// - Throws: ``ToolError/format(_:)`` if the image cannot be opened, ``ToolError/host(_:errno:)``
  ///   if it cannot be read.
  package init(
    reading bytes: any ImageBytes, path: String, allocatedBytes: UInt64
  ) throws(ToolError) {
    self.path = path
    diskSize = allocatedBytes
    fileLength = bytes.length
    let head = try HeaderCluster(reading: bytes)
    header = head.header
    virtualSize = head.diskSize
    if let problem = header.problemForReading(fileLength: head.fileLength) {
      throw .format(problem)
    }
    backingFile = head.backingFile
    backingFormat = head.backingFormat.flatMap { $0.isEmpty ? nil : $0 }
    dataFile = head.dataFile
    var warnings: [String] = []
    snapshots = try Self.list("snapshots", &warnings) { () throws(ToolError) in
      try SnapshotList(reading: bytes, head).snapshots
    }
    bitmaps = try Self.list("bitmaps", &warnings) { () throws(ToolError) in
      try Self.bitmaps(bytes, head)
    }
    self.warnings = warnings
    encryption = try Self.encryption(bytes, head)
  }

  /// What can be read, and else nothing with a warning: it does not keep the disk from being read.
  private static func list<Element>(
    _ name: String, _ warnings: inout [String], _ read: () throws(ToolError) -> [Element]
  ) throws(ToolError) -> [Element] {
    do throws(ToolError) { return try read() } catch {
      guard case .format(let problem) = error else { throw error }
      warnings.append("\(name) are not shown: \(problem.message)")
      return []
    }
  }

  private static func bitmaps(
    _ bytes: any ImageBytes, _ head: HeaderCluster
  ) throws(ToolError) -> [BitmapDirectory.Item] {
    switch head.trustedBitmaps {
    case .none: return []
    case .success(let location): return try BitmapList.read(bytes, head, location)
    case .failure(let error): throw .format(error)
    }
  }

  private static func encryption(
    _ bytes: any ImageBytes, _ head: HeaderCluster
  ) throws(ToolError) -> Encryption? {
    switch head.header.cryptMethod {
    case 0: return nil
    case 1: return .aes
    default: return .luks(try luks(bytes, head))
    }
  }

  private static func luks(
    _ bytes: any ImageBytes, _ head: HeaderCluster
  ) throws(ToolError) -> LUKSFields {
    guard let pointer = head.encryptionHeader else {
      throw .format(.badField(name: "encryption header extensions", found: 0, allowed: "1"))
    }
    let fields = try LUKSFields(reading: bytes, at: pointer.offset)
    guard fields.magic == LUKSFields.luksMagic else {
      throw .format(
        .badField(
          name: "magic number of the encryption header", found: fields.magic,
          allowed: "\(LUKSFields.luksMagic) (LUKS)"))
    }
    return fields
  }

  /// Where the backing file is looked for; nil if it has none.
  var fullBackingFile: String? {
    guard let backingFile else { return nil }
    let isAbsolute = backingFile.hasPrefix("/") || hasProtocol(backingFile)
    guard !isAbsolute, let slash = path.lastIndex(of: "/") else { return backingFile }
    return path[...slash] + backingFile
  }

  /// Whether QEMU would take the part before a colon as a protocol: it has no slash before it.
  private func hasProtocol(_ name: String) -> Bool {
    if case .path = FileReference(parsing: name) { false } else { true }
  }
}
