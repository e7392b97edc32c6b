import ImageJobs
import JSON
import TestTools
import Testing

@testable import Daemon

/// The messages of the control protocol, as they stand in docs/control-protocol.md.
@Suite struct ControlMessageTests {
  static let requests: [(ControlRequest, String)] = [
    (.stats, "{\"version\": 1, \"request\": \"stats\"}"),
    (.jobs, "{\"version\": 1, \"request\": \"jobs\"}"),
    (.stop(.check), "{\"version\": 1, \"request\": \"can-stop\"}"),
    (.stop(.ifUnused), "{\"version\": 1, \"request\": \"stop\"}"),
    (
      .stop(.forced),
      "{\"version\": 1, \"request\": \"stop\", \"arguments\": {\"force\": true}}"
    ),
    (
      .job("map", .object([.init("start", .integer(0))])),
      "{\"version\": 1, \"request\": \"map\", \"arguments\": {\"start\": 0}}"
    ),
    (.job("info", nil), "{\"version\": 1, \"request\": \"info\"}"),
  ]

  static let messages: [(ControlMessage, String)] = [
    (.wait, "{\"event\": \"wait\"}"),
    (
      .progress(.init(done: 1, total: .max, unit: .bytes)),
      "{\"event\": \"progress\", \"done\": 1, \"total\": 18446744073709551615, \"unit\": \"bytes\"}"
    ),
    (.told(.note("a \"b\"\n")), "{\"event\": \"note\", \"text\": \"a \\\"b\\\"\\n\"}"),
    (.told(.output("x\n")), "{\"event\": \"output\", \"text\": \"x\\n\"}"),
    (.items([.integer(1), .null]), "{\"event\": \"items\", \"items\": [1, null]}"),
    (.done, "{\"result\": {}}"),
    (
      .error(ControlError(.unknownRequest, "no")),
      "{\"error\": {\"kind\": \"unknown-request\", \"text\": \"no\"}}"
    ),
  ]

  @Test func `every request is written and read as it is documented`() throws {
    for (request, line) in Self.requests {
      #expect(request.line == line)
      #expect(try ControlRequest(parsing: line.utf8) == request)
    }
  }

  @Test func `every message is written and read as it is documented`() {
    for (message, line) in Self.messages {
      #expect(message.line == line)
      #expect(ControlMessage(parsing: line.utf8) == message)
    }
    for kind in ControlError.Kind.allCases {
      let error = ControlMessage.error(ControlError(kind, "x"))
      #expect(ControlMessage(parsing: error.line.utf8) == error)
    }
  }

  @Test func `a kind of error or event that is not known is one all the same`() {
    let line = "{\"error\": {\"kind\": \"new\", \"text\": \"x\"}}"
    #expect(ControlMessage(parsing: line.utf8) == .error(ControlError(.other, "x")))
    #expect(ControlMessage(parsing: "{\"event\": \"new\"}".utf8) == .wait)
  }

  @Test(arguments: [
    "", "x", "[]", "{}", "{\"event\": 5}", "{\"event\": \"note\"}", "{\"event\": \"items\"}",
    "{\"event\": \"progress\", \"done\": -1, \"total\": 0, \"unit\": \"bytes\"}",
    "{\"event\": \"progress\", \"done\": 1, \"total\": 0, \"unit\": \"x\"}", "{\"error\": {}}",
  ])
  func `what is no message is none`(_ line: String) {
    #expect(ControlMessage(parsing: line.utf8) == nil)
  }

  /// Whatever a client or a daemon sends: it is a message, or it is refused.
  @Test func `mutated messages are read or refused`() {
    var random = SeededGenerator(seed: testSeed("ControlMessageTests"))
    let lines = (Self.requests.map(\.1) + Self.messages.map(\.1)).map { Array($0.utf8) }
    for _ in 0..<20_000 {
      var bytes = lines[random.below(lines.count)]
      for _ in 0...random.below(4) where !bytes.isEmpty {
        let place = random.below(bytes.count)
        if random.chance(40) {
          bytes.removeSubrange(place..<min(place + 1 + random.below(8), bytes.count))
        } else if random.chance(50) {
          bytes.insert(contentsOf: lines[random.below(lines.count)], at: place)
        } else {
          bytes[place] = random.bytes(1)[0]
        }
      }
      if let message = ControlMessage(parsing: bytes) {
        #expect(ControlMessage(parsing: message.line.utf8) == message)
      }
      do throws(ControlError) {
        let request = try ControlRequest(parsing: bytes)
        let again = try ControlRequest(parsing: request.line.utf8)
        #expect(again == request)
      } catch { #expect(!error.text.isEmpty) }
    }
  }
}
