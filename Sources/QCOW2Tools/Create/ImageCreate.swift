import BlockCore
import Glibc
package import QCOW2Codec
import QCOW2Format

/// Writes new images.
package enum ImageCreate {
  /// What stands in place of the magic of an image that is still being filled: "QFI" and a zero.
  package static let incompleteMagic: [UInt8] = [0x51, 0x46, 0x49, 0]

  /// Makes the file at `path` an empty image; see ``run(_:on:)``.
  ///
  /// The options are judged, and a LUKS header is made, which takes seconds, before the file is
  /// opened. If the create fails, a file that it made is removed again.
  ///
  /// - Parameters:
  ///   - options: What to create.
  ///   - path: A regular file, made if it does not exist, or a block device.
  ///   - passphrase: Of an image that is to be encrypted.
  ///   - isIncomplete: The image is to be filled: it has ``incompleteMagic``, and is none until then.
  ///   - lock: Takes the image's locks, or throws if somebody else has it in use.
  /// - Throws: ``ToolError`` of any kind.
  package static func run(
    _ options: CreateOptions, path: String, passphrase: Secret? = nil, isIncomplete: Bool = false,
    lock: FileBytes.Locker = { _ throws(ToolError) in }
  ) throws(ToolError) {
    try judge(options, path: path)
    let encryptionHeader = try options.encryption?.makeHeader(passphrase) ?? []
    // All files are open, locked and large enough before the first of them is touched.
    let file = try FileBytes(path: path, access: .create, lock: lock)
    var data: FileBytes?
    do throws(ToolError) {
      data = try options.dataFile.map { name throws(ToolError) in
        try openDataFile(name, options, lock)
      }
      try requireSpace(options, on: file)
      if !file.isBlockDevice { _ = options.hints.apply(to: file.descriptor) }
      if let data, let name = options.dataFile { try fill(data, name, options) }
      try run(options, encryptionHeader, isIncomplete: isIncomplete, on: file)
    } catch {
      // The error of the create is the one to report.
      if file.isNew { _ = unsafe unlink(path) }
      if let data, data.isNew, let name = options.dataFile { _ = unsafe unlink(name) }
      throw error
    }
  }

  /// Throws what is wrong with the options and names; opens nothing.
  package static func judge(_ options: CreateOptions, path: String) throws(ToolError) {
    _ = try layout(options)
    do throws(OptionError) { try DistinctFiles.require(options, image: path) } catch {
      throw .option(error)
    }
  }

  private static func requireSpace(
    _ options: CreateOptions, on file: FileBytes
  ) throws(ToolError) {
    let layout = try layout(options)
    guard !file.isBlockDevice || file.length >= layout.fileLength else {
      throw .deviceTooSmall(needed: layout.fileLength, available: file.length)
    }
  }

  /// Opens the external data file, and changes nothing that is in it.
  private static func openDataFile(
    _ name: String, _ options: CreateOptions, _ lock: FileBytes.Locker
  ) throws(ToolError) -> FileBytes {
    do throws(ToolError) {
      let file = try FileBytes(path: name, access: .create, lock: lock)
      guard !file.isBlockDevice || file.length >= options.virtualSize else {
        throw .deviceTooSmall(needed: options.virtualSize, available: file.length)
      }
      return file
    } catch {
      throw .dataFile(name: name, problem: error.message)
    }
  }

  /// Makes the external data file one of zeros, as long as the disk; what it held is lost.
  private static func fill(
    _ file: FileBytes, _ name: String, _ options: CreateOptions
  ) throws(ToolError) {
    do throws(ToolError) {
      let length = options.virtualSize
      if !file.isBlockDevice {
        // A length that the host cannot have fails before anything is lost.
        try file.setLength(max(file.length, length))
        try file.setLength(0)
        try file.setLength(length)
      }
      if options.preallocation == .falloc { try file.allocate(length) }
      // A block device has old bytes, which the guest must not read.
      if options.preallocation == .full || (file.isBlockDevice && options.mapping != .off) {
        try file.writeZeroes(from: HostOffset(0), length: length)
      }
      try file.sync()
    } catch {
      throw .dataFile(name: name, problem: error.message)
    }
  }

  /// Makes `file` an empty image; what it held is lost.
  ///
  /// The header is written last, after everything else is durable: an interrupted create leaves
  /// something that is not a qcow2 image, never a broken one.
  ///
  /// - Parameters:
  ///   - options: What to create.
  ///   - encryptionHeader: What ``CreateEncryption/makeHeader(_:)`` has made of their encryption.
  ///   - isIncomplete: The image has ``incompleteMagic``.
  ///   - file: A regular file or a block device.
  /// - Throws: ``ToolError/option(_:)`` before anything is touched; any other error may leave the
  ///   file without a header.
  package static func run(
    _ options: CreateOptions, _ encryptionHeader: [UInt8] = [], isIncomplete: Bool = false,
    on file: any WritableImageBytes
  ) throws(ToolError) {
    precondition(encryptionHeader.count == options.encryption?.headerLength ?? 0)
    let layout = try layout(options)
    if file.isBlockDevice && file.length < layout.fileLength {
      throw .deviceTooSmall(needed: layout.fileLength, available: file.length)
    }
    let writer = ImageWriter(options: options, layout: layout, file: file)
    try writer.removeOldImage()
    try writer.reserveStorage()
    try writer.writeRefcounts()
    try writer.writeTables()
    try writer.writeEncryptionHeader(encryptionHeader)
    try writer.writeData()
    try file.sync()
    try writer.writeHeader(isIncomplete: isIncomplete)
    try file.sync()
  }

  private static func layout(_ options: CreateOptions) throws(ToolError) -> ImageLayout {
    do throws(OptionError) { return try ImageLayout(options) } catch { throw .option(error) }
  }
}

/// The steps of one create.
private struct ImageWriter {
  let options: CreateOptions
  let layout: ImageLayout
  let file: any WritableImageBytes

  private static let chunk = 1 << 20

  private var geometry: ClusterGeometry { layout.geometry }

  func removeOldImage() throws(ToolError) {
    if file.isBlockDevice {
      try file.writeZeroes(from: HostOffset(0), length: min(geometry.clusterSize, file.length))
    } else if file.length > 0 {
      try file.setLength(0)
    } else {
      return
    }
    try file.sync()
  }

  func reserveStorage() throws(ToolError) {
    guard !file.isBlockDevice else { return }
    try file.setLength(layout.fileLength)
    if options.preallocation == .falloc { try file.allocate(layout.fileLength) }
  }

  func writeRefcounts() throws(ToolError) {
    let plan = layout.refcounts
    for (position, number) in plan.numbers.enumerated() {
      let block = IOBuffer(count: Int(geometry.clusterSize))
      unsafe RefcountWidth.countOnce(
        HostCluster(0)..<layout.end, in: block.base, number: number, geometry)
      try unsafe file.write(block.bytes, at: plan.block(at: position))
      withExtendedLifetime(block) {}
    }
    try writeTable(
      at: plan.tableOffset, entries: UInt64(plan.numbers.count),
      padded: UInt64(plan.table.count) * geometry.clusterSize
    ) { RefcountTableEntry(block: plan.block(at: Int($0))).raw }
  }

  func writeTables() throws(ToolError) {
    guard layout.l1Entries > 0 else { return }
    let hasTables = layout.l2Tables > 0
    guard hasTables || file.isBlockDevice else { return }  // the table is a hole, all zeros
    try writeTable(at: layout.l1Table, entries: layout.l1Entries, padded: layout.l1Entries * 8) {
      hasTables ? L1Entry(l2Table: layout.l2Table($0), copied: true).raw : 0
    }
    // The L2 tables lie side by side, so they are one long table. The second half of an extended
    // entry is zero: a cluster, and no subcluster of it allocated.
    let halves: UInt64 = options.extendedL2 ? 2 : 1
    try writeTable(
      at: layout.l2Table(0), entries: layout.mappedClusters * halves,
      padded: layout.l2Tables * geometry.clusterSize
    ) { $0 % halves == 0 ? entry($0 / halves).raw : 0 }
  }

  /// The entry of a preallocated guest cluster.
  ///
  /// What is in the file are zeros, which decrypt to noise: an encrypted cluster is marked to read
  /// as zeros until it is written, where qemu-img lets the guest see the noise.
  private func entry(_ cluster: UInt64) -> L2Entry {
    let start = options.dataFile == nil ? layout.data : HostOffset(0)
    let plain = L2Entry(data: start + (cluster << UInt64(geometry.clusterBits)), copied: true)
    return options.encryption == nil || options.extendedL2 ? plain : plain.zeroed
  }

  func writeEncryptionHeader(_ header: [UInt8]) throws(ToolError) {
    guard !header.isEmpty else { return }
    let padded = IOBuffer(
      starting: header, count: Int(layout.encryptionClusters * geometry.clusterSize))
    defer { withExtendedLifetime(padded) {} }
    try unsafe file.write(padded.bytes, at: layout.encryptionHeader)
  }

  func writeData() throws(ToolError) {
    let length = layout.dataClusters << UInt64(geometry.clusterBits)
    // A block device has old bytes there, which the guest must not read.
    if options.preallocation == .full || file.isBlockDevice {
      try file.writeZeroes(from: layout.data, length: length)
    }
  }

  func writeHeader(isIncomplete: Bool) throws(ToolError) {
    var bytes = HeaderBytes.bytes(options, layout)
    if isIncomplete { bytes.replaceSubrange(0..<4, with: ImageCreate.incompleteMagic) }
    let block = IOBuffer(starting: bytes, count: Int(geometry.clusterSize))
    defer { withExtendedLifetime(block) {} }
    try unsafe file.write(block.bytes, at: HostOffset(0))
  }

  /// Writes `entries` big-endian entries, then zeros up to `padded` bytes.
  private func writeTable(
    at start: HostOffset, entries: UInt64, padded: UInt64, _ entry: (UInt64) -> UInt64
  ) throws(ToolError) {
    let buffer = IOBuffer(count: Int(min(padded, UInt64(Self.chunk))))
    var done: UInt64 = 0
    while done < padded {
      let count = min(padded - done, UInt64(buffer.count))
      for index in 0..<(count / 8) {
        let number = done / 8 + index
        buffer.storeBE64(number < entries ? entry(number) : 0, Int(index) * 8)
      }
      try unsafe file.write(buffer.bytes(count: Int(count)), at: start + done)
      done += count
    }
  }
}

extension WritableImageBytes {
  /// Writes zeros as data.
  func writeZeroes(from start: HostOffset, length: UInt64) throws(ToolError) {
    let buffer = IOBuffer(count: Int(min(length, UInt64(1 << 20))))
    var done: UInt64 = 0
    while done < length {
      let count = min(length - done, UInt64(buffer.count))
      try unsafe write(buffer.bytes(count: Int(count)), at: start + done)
      done += count
    }
  }
}

extension IOBuffer {
  /// All bytes, for a write.
  var bytes: UnsafeRawBufferPointer { unsafe bytes(count: count) }

  /// The first `count` bytes, for a write.
  func bytes(count: Int) -> UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(start: base, count: count)
  }
}
