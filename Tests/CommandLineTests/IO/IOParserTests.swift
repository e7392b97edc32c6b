import DiskImages
import Glibc
import TestTools
import Testing

@testable import DiskShell

@Suite struct IOParserTests {
  @Test(arguments: [
    ("0", 0), ("1k", 1024), ("1K", 1024), ("1.5k", 1536), ("0x10", 16), ("0x1k", 1024),
    ("7E", 7 << 60), ("9223372036854775807", Int64.max), ("1b", 1), ("+5", 5), ("5.", 5),
  ])
  func byteCounts(_ text: String, _ value: Int64) throws {
    #expect(try IONumber.bytes(text) == UInt64(value))
  }

  @Test(arguments: ["", "x", "-1", "0x", "1kk", "1.5", ".5k", "1e3", "0x-1", "0x+1", "++1", "k"])
  func whatIsNoNumber(_ text: String) {
    let error = #expect(throws: IOFailure.self) { try IONumber.bytes(text) }
    guard case .notNumeric(text) = error else {
      Issue.record("\(text): \(String(describing: error))")
      return
    }
  }

  @Test(arguments: [
    "8E", "16E", "9223372036854775808", "99999999999999999999", "0xffffffffffffffff",
  ])
  func whatIsTooLarge(_ text: String) {
    let error = #expect(throws: IOFailure.self) { try IONumber.bytes(text) }
    guard case .tooLarge(text) = error else {
      Issue.record("\(text): \(String(describing: error))")
      return
    }
  }

  @Test func listsHaveDoubledCommas() {
    let pairs = DiskOpening.pairs("a=b,c,d=e,,f=g,,,h=,i==")
    #expect(pairs.map(\.name) == ["a", "c", "d", "h", "i"])
    #expect(pairs.map(\.value) == ["b", "on", "e,f=g,", "", "="])
  }

  @Test func everyCommandIsFoundByItsNames() throws {
    for command in IOCommandSpec.all {
      for name in [command.name, command.alias].compactMap({ $0 }) {
        #expect(try IOCommandSpec.find(in: " \(name)  x ")?.command.name == command.name)
      }
    }
  }

  @Test func anyLineGivesACommandOrAText() throws {
    let seed = testSeed("parser", fallback: .random(in: 0...UInt64.max))
    var random = IORandomLines(seed: seed)
    for _ in 0..<50_000 {
      let line = random.next()
      do throws(IOFailure) {
        guard let (command, name, words) = try IOCommandSpec.find(in: line) else { continue }
        try command.checkCount(words.count, calledAs: name)
        _ = try command.parse(words, command)
      } catch {
        let lines = error.lines
        #expect(
          lines.output?.isEmpty == false || lines.errors?.isEmpty == false,
          "seed \(random.seed): \(line)")
      }
    }
  }
}

/// Lines that resemble commands.
struct IORandomLines {
  let seed: UInt64
  private var random: SeededGenerator

  init(seed: UInt64) {
    self.seed = seed
    random = SeededGenerator(seed: seed)
  }

  private mutating func below(_ bound: Int) -> Int { random.below(bound) }

  /// No "abort" and "sigraise", which end the program rightly, and no "open" of what is not there.
  private static let names = [
    "read", "write", "readv", "writev", "aio_read", "aio_write", "aio_flush", "discard", "alloc",
    "map", "length", "flush", "truncate", "info", "help", "close", "r", "w", "d", "a", "break",
    "resume", "rea", "sleep", "?",
  ]

  private static let words = [
    "0", "1", "512", "511", "4k", "64k", "65535", "1M", "63M", "64M", "2G", "3G", "8E", "16E",
    "9223372036854775807", "18446744073709551615", "0x", "0x10", "-1", "-", "--", "-q", "-v",
    "-z", "-zu", "-n", "-c", "-b", "-f", "-P", "-P1", "-P300", "-s", "-l", "-C", "-i", "-qvP",
    "1.5k", "1.5", "ä", "\u{0}", "'", "\t", "-m", "off", "full", "1e9", "é́", "🙂", "-ß", "",
  ]

  mutating func next() -> String {
    if below(20) == 0 {
      return String(
        decoding: (0..<below(60)).map { _ in UInt8(truncatingIfNeeded: below(255) + 1) },
        as: UTF8.self
      ).replacing("\n", with: " ")
    }
    let name = Self.names[below(Self.names.count)]
    if name == "sleep" { return "sleep \(["x", "0", "1", "-1", "1x"][below(5)])" }
    let words = (0..<below(6)).map { _ in Self.words[below(Self.words.count)] }
    return ([name] + words).joined(separator: " ")
  }
}
