import BlockCore

/// The commands that tell of the disk.
extension Workbench {
  func showInfo(_ disk: IODisk) async throws(IOFailure) { IOOutput.write(try disk.facts()) }

  func showMap(_ disk: IODisk) async throws(IOFailure) {
    var offset: UInt64 = 0
    while offset < disk.size {
      let found = try await joined(disk, offset)
      let word = found.isAllocated ? "    allocated" : "not allocated"
      IOOutput.write(
        "\(IOReport.size(found.length)) (0x\(String(found.length, radix: 16))) bytes \(word) "
          + "at offset \(IOReport.size(offset)) (0x\(String(offset, radix: 16)))\n")
      offset += found.length
    }
  }

  /// The range from `offset` on to the first change.
  private func joined(
    _ disk: IODisk, _ offset: UInt64
  ) async throws(IOFailure) -> IODisk.Allocation {
    var whole = try await disk.allocation(at: offset, length: disk.size - offset)
    while offset + whole.length < disk.size {
      let next = try await disk.allocation(
        at: offset + whole.length, length: disk.size - offset - whole.length)
      guard next.isAllocated == whole.isAllocated else { break }
      whole.length += next.length
    }
    return whole
  }

  func showAllocation(
    _ disk: IODisk, _ offset: UInt64, _ count: UInt64
  ) async throws(IOFailure) {
    let end = min(offset + count, max(disk.size, offset))  // both below 2^63
    var next = offset
    var allocated: UInt64 = 0
    while next < end {
      let found = try await disk.allocation(at: next, length: end - next)
      if found.isAllocated { allocated += found.length }
      next += found.length
    }
    IOOutput.write(
      "\(allocated)/\(end - offset) bytes allocated at offset \(IOReport.size(offset))\n")
  }
}
