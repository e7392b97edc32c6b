import ImageJobs
import Synchronization

/// The commands that tell of the disk.
extension Workbench {
  func showInfo(_ disk: IODisk) async throws(IOFailure) { IOOutput.write(try await disk.facts()) }

  func showMap(_ disk: IODisk) async throws(IOFailure) {
    try await disk.map(MapJob()) { found in
      let word = found.isAllocated ? "    allocated" : "not allocated"
      IOOutput.write(
        "\(IOReport.size(found.length)) (0x\(String(found.length, radix: 16))) bytes \(word) "
          + "at offset \(IOReport.size(found.start)) (0x\(String(found.start, radix: 16)))\n")
    }
  }

  func showAllocation(
    _ disk: IODisk, _ offset: UInt64, _ count: UInt64
  ) async throws(IOFailure) {
    let end = min(offset + count, max(disk.size, offset))  // both below 2^63
    let allocated = Atomic<UInt64>(0)
    try await disk.map(MapJob(start: offset, length: count)) { found in
      if found.isAllocated { allocated.wrappingAdd(found.length, ordering: .relaxed) }
    }
    let sum = allocated.load(ordering: .relaxed)
    IOOutput.write(
      "\(sum)/\(end - offset) bytes allocated at offset \(IOReport.size(offset))\n")
  }
}
