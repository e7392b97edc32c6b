import BlockCore
import QCOW2Engine
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing
import Uring

extension BadInputTests {
  /// `check`, `info` and the engine say the same of an image, whatever is wrong with it.
  struct VerdictTests {
    private static let rounds = 1000
    private static let values: [UInt64] = [
      0, 1, 2, 3, 8, 9, 72, 104, 112, 511, 512, 1024, 3584, 7168, 7680, 1 << 20, 1 << 40, 1 << 55,
      1 << 56, 1 << 62, 1 << 63, UInt64.max, 0x00ff_ffff_ffff_fe00,
    ]

    /// What the check says.
    private enum Check {
      case failed(ToolError)
      case done(CheckResult, [CheckFinding])

      var isSound: Bool {
        if case .done(let result, _) = self { result.exitCode % 3 == 0 } else { false }
      }
      var saysUnreadable: Bool {
        switch self {
        case .failed(.format): true
        case .failed: false
        case .done(_, let findings):
          findings.contains { if case .unreadable = $0 { true } else { false } }
        }
      }
      var saysUnwritable: Bool {
        guard case .done(_, let findings) = self else { return true }
        return findings.contains {
          switch $0 {
          case .unreadable, .unwritable: true
          default: false
          }
        }
      }
    }

    private func check(_ bytes: [UInt8]) -> Check {
      var findings: [CheckFinding] = []
      do throws(ToolError) {
        let result = try ImageCheck.run(MemoryBytes(bytes)) { findings.append($0) }
        return .done(result, findings)
      } catch { return .failed(error) }
    }

    /// Why the image cannot be opened; nil if it can.
    private func openFailure(_ bytes: [UInt8], readOnly: Bool) -> ImageError? {
      runBlocking { () async -> ImageError? in
        var options = ImageOptions()
        options.readOnly = readOnly
        do throws(ImageError) {
          let image = try await Image.open(
            SparseFile(bytes, isReadOnly: readOnly), options: options)
          try await image.close()
          return nil
        } catch { return error }
      }
    }

    /// An image with a snapshot and header extensions, to be spoiled.
    private static func base() -> HandmadeImage {
      var image = HandmadeImage()
      // A backing format without a backing file, twice, and something unknown.
      for (index, text) in ["raw", "qcow2"].enumerated() {
        image.put32(0xe279_2aca, at: 104 + index * 16)
        image.put32(UInt32(text.utf8.count), at: 108 + index * 16)
        for (place, byte) in text.utf8.enumerated() { image.bytes[112 + index * 16 + place] = byte }
      }
      image.put32(0x1234_5678, at: 136)
      image.put32(8, at: 140)
      return image
    }

    private static func spoil(_ image: inout HandmadeImage, _ random: inout SeededGenerator) {
      for _ in 0..<Int.random(in: 1...3, using: &random) {
        let area = [0, 0, 0, 3, 1, 2, 4, 14].randomElement(using: &random) ?? 0
        let reach = area == 0 ? 160 : 64
        let place = image.start(area) + Int.random(in: 0..<reach / 4, using: &random) * 4
        guard place + 8 <= image.bytes.count else { continue }
        let value = values.randomElement(using: &random) ?? 0
        switch Int.random(in: 0..<4, using: &random) {
        case 0: image.bytes[place + 3] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        case 1: image.put32(UInt32(truncatingIfNeeded: value), at: place)
        case 2: image.put64(value, at: place & ~7)
        default: image.put64(UInt64(Int.random(in: 0...16, using: &random)) << 9, at: place & ~7)
        }
      }
      if Int.random(in: 0..<12, using: &random) == 0 {
        image.bytes.removeLast(Int.random(in: 0..<image.bytes.count, using: &random))
      }
    }

    private func judge(_ bytes: [UInt8], _ name: Comment) {
      let reader = openFailure(bytes, readOnly: true)
      // What the image needs beside itself is nobody's verdict here.
      if case .missing = reader { return }
      let writer = openFailure(bytes, readOnly: false)
      let check = check(bytes)
      let info: ToolError?
      do throws(ToolError) {
        _ = try ImageInfo(reading: MemoryBytes(bytes), path: "x", allocatedBytes: 0)
        info = nil
      } catch { info = error }
      #expect((reader == nil) == (info == nil), "\(name): info: \(info?.message ?? "shown")")
      if reader != nil { #expect(check.saysUnreadable, "\(name): \(check)") }
      switch writer {
      case .markedDirty, .markedCorrupt: break
      case nil: #expect(!check.saysUnwritable, "\(name): opened, but \(check)")
      case .some(let error): #expect(!check.isSound, "\(name): \(error.message), but \(check)")
      }
      if reader != nil { #expect(writer != nil, "\(name)") }
    }

    @Test func checkInfoAndOpenAgree() {
      let seed = testSeed("verdicts", fallback: .random(in: 0...UInt64.max))
      let base = Self.base()
      judge(base.bytes, "untouched")
      #expect(check(base.bytes).isSound)
      for round in 0..<Self.rounds {
        var random = SeededGenerator(seed: seed &+ UInt64(round))
        var image = base
        Self.spoil(&image, &random)
        judge(image.bytes, "seed \(seed), round \(round)")
      }
    }

    @Test func aCutFileIsJudgedAlike() {
      let image = HandmadeImage()
      for length in stride(from: 0, to: image.bytes.count, by: 8) {
        judge(Array(image.bytes[..<length]), "cut to \(length)")
      }
    }

    @Test func theLastOfTwoBackingFormatsCounts() throws {
      let bytes = Self.base().bytes
      let info = try ImageInfo(reading: MemoryBytes(bytes), path: "x", allocatedBytes: 0)
      #expect(info.report.jsonText.contains("\"backing-filename-format\": \"qcow2\""))
      let references = runBlocking { () async -> HeaderCluster? in
        try? await HeaderCluster.read(SparseFile(bytes, isReadOnly: true))
      }
      #expect(references?.backingFormat == "qcow2")
    }
  }
}
