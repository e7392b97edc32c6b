import BlockCore
import QCOW2Codec
import QCOW2Format

/// What header extensions point at.
extension ImageCheck {
  func checkEncryptionHeader() throws(ToolError) {
    let isLUKS = head.header.cryptMethod == 2
    guard let pointer = head.encryptionHeader else {
      if isLUKS { found(.encryption(.missing)) }
      return
    }
    guard isLUKS else {
      found(.encryption(.notExpected(cryptMethod: head.header.cryptMethod)))
      return
    }
    guard pointer.offset.bytes & geometry.clusterMask == 0 else {
      found(
        .encryption(
          .format(
            .badOffset(name: "encryption header", offset: pointer.offset, problem: .unaligned))))
      return
    }
    add(.encryptionHeader, at: pointer.offset, length: pointer.length)
    guard pointer.offset.bytes < head.fileLength else { return }
    let magic = try LUKSFields(reading: bytes, at: pointer.offset).magic
    if magic != LUKSFields.luksMagic { found(.encryption(.noMagic(found: magic))) }
  }

  func checkBitmaps() throws(ToolError) {
    switch head.trustedBitmaps {
    case .none:
      if head.header.autoclear.contains(.bitmaps), !plansRepair { found(.bitmapsMissing) }
    case .failure(let error): found(.bitmaps(error))
    case .success(let location):
      add(.bitmapDirectory, at: location.directory, length: location.directoryLength)
      try checkBitmaps(location)
    }
  }

  private func checkBitmaps(_ location: BitmapsExtension) throws(ToolError) {
    let bitmaps: [BitmapDirectory.Item]
    do throws(ToolError) { bitmaps = try BitmapList.read(bytes, head, location) } catch {
      guard case .format(let problem) = error else { throw error }
      found(.bitmaps(problem))
      return
    }
    for (number, bitmap) in bitmaps.enumerated() {
      let length = UInt64(bitmap.entry.tableSize) * 8
      add(.bitmapTable, at: bitmap.entry.table, length: length)
      try checkBitmapTable(number, bitmap.entry)
    }
  }

  private func checkBitmapTable(_ number: Int, _ bitmap: BitmapEntry) throws(ToolError) {
    guard bitmap.table.bytes < head.fileLength else { return }
    // Entries past the end of the file are zeros: nothing to judge.
    let inFile = (head.fileLength - bitmap.table.bytes) / 8 + 1
    let count = Int(min(UInt64(bitmap.tableSize), inFile))  // at most 2^20 entries: 8 MiB
    let table = try bytes.block(at: bitmap.table, count: count * 8)
    for index in 0..<count {
      let entry = BitmapTableEntry(raw: table.be64(index * 8))
      let place = EntryPlace.bitmapTable(bitmap: number, index: index)
      let faults = entry.faults(geometry)
      if faults.contains(.reservedBits) { found(.reservedBits(entry: place, raw: entry.raw)) }
      guard let cluster = entry.cluster else { continue }
      guard !faults.contains(.unaligned) else {
        found(.unaligned(use: .bitmapData, offset: cluster, entry: place))
        continue
      }
      add(.bitmapData, at: cluster, length: geometry.clusterSize)
    }
  }
}
