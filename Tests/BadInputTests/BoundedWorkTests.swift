import BlockCore
import Glibc
import QCOW2Engine
import QCOW2Format
import Testing
import Uring

extension BadInputTests {
  /// Images that ask for more time or memory than they are worth.
  struct BoundedWorkTests {
    /// The limit on what opening and using any image may take.
    private static let memoryLimit = 256 << 20
    /// The largest L1 table, and where the tests place it: behind the handmade image.
    private static let largestL1 = 1 << 22

    /// A handmade image whose L1 table is the largest possible: entry i is `first` + i * `step`.
    private func largeL1(
      clusterBits: Int, first: UInt64, step: UInt64
    ) -> (Bool) -> SparseFile {
      var image = HandmadeImage(clusterBits: clusterBits)
      let start = UInt64(32 << 20)
      let count = Self.largestL1
      image.put64(start, at: 40)
      image.put32(UInt32(count), at: 36)
      image.put64(UInt64(count) * image.bytesPerTable, at: 24)
      let bytes = image.bytes
      return { isReadOnly in
        let file = SparseFile(bytes, isReadOnly: isReadOnly)
        file.resize(1 << 27)
        if first == 0 { return file }
        var part = [UInt64](repeating: 0, count: 1 << 14)
        for position in stride(from: 0, to: count, by: part.count) {
          for index in part.indices {
            part[index] = (first + UInt64(position + index) * step).bigEndian
          }
          file.place(part.withUnsafeBytes { Array($0) }, at: start + UInt64(position) * 8)
        }
        return file
      }
    }

    /// The most memory that the process has had since the last call, in bytes.
    private func peakMemory() -> Int {
      let bytes = fopen("/proc/self/status", "r")
      defer { if let bytes { fclose(bytes) } }
      var line = [CChar](repeating: 0, count: 256)
      while let bytes, fgets(&line, Int32(line.count), bytes) != nil {
        let text = String(
          decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        if text.hasPrefix("VmHWM:") {
          return (Int(text.filter(\.isNumber)) ?? 0) << 10
        }
      }
      return 0
    }

    private func resetPeakMemory() {
      guard let file = fopen("/proc/self/clear_refs", "w") else { return }
      fputs("5", file)
      fclose(file)
    }

    private func runWithinMemory(_ trial: Trial, own: Int) {
      resetPeakMemory()
      let before = peakMemory()
      trial.run()
      let used = peakMemory() - before - own
      #expect(used < Self.memoryLimit, "\(trial.name): \(used >> 20) MiB")
    }

    @Test(arguments: [9, 21])
    func aVirtualSizeOfTheLargestPossibleL1TableIsServed(clusterBits: Int) {
      runWithinMemory(
        Trial(
          "largest L1 table, empty", makeFile: largeL1(clusterBits: clusterBits, first: 0, step: 0)),
        own: 0)
    }

    @Test(arguments: [9, 21])
    func allL1EntriesPointingAtOneTableDoNotTakeForEver(clusterBits: Int) {
      let table = UInt64(HandmadeImage.l2Tables[0]) << UInt64(clusterBits)
      runWithinMemory(
        Trial(
          "4 Mi times one L2 table",
          makeFile: largeL1(clusterBits: clusterBits, first: table, step: 0)),
        own: 64 << 20)
    }

    @Test(arguments: [9, 21])
    func l1EntriesBeyondTheEndOfTheFileDoNotTakeForEver(clusterBits: Int) {
      runWithinMemory(
        Trial(
          "4 Mi L2 tables beyond the end",
          makeFile: largeL1(
            clusterBits: clusterBits, first: 1 << 40, step: 1 << UInt64(clusterBits))),
        own: 64 << 20)
    }

    @Test func refcountTablesWhoseBlocksAreAllTheSameDoNotTakeForEver() {
      var image = HandmadeImage(clusterBits: 12)
      let start = UInt64(1 << 20)
      image.put64(start, at: 48)
      image.put32(UInt32((8 << 20) / 4096), at: 56)
      for cluster in 0..<2048 { image.setRefcount(1, cluster) }
      let bytes = image.bytes
      let entry = image.offset(HandmadeImage.refcountBlock)
      let makeFile = { (isReadOnly: Bool) -> SparseFile in
        let file = SparseFile(bytes, isReadOnly: isReadOnly)
        var page = HandmadeImage(clusterBits: 12)
        for index in 0..<512 { page.put64(entry, at: index * 8) }
        for number in 0..<2048 {
          file.place(Array(page.bytes[..<4096]), at: start + UInt64(number) * 4096)
        }
        return file
      }
      runWithinMemory(Trial("1 Mi times one refcount block", makeFile: makeFile), own: 32 << 20)
    }
  }
}
