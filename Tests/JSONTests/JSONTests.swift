import JSON
import TestTools
import Testing

@Suite struct JSONTests {
  /// Every kind of value, with the numbers at their limits.
  static let sample: JSONValue = .object([
    .init("null", .null), .init("yes", .bool(true)), .init("no", .bool(false)),
    .init("least", .integer(.min)), .init("most", .integer(.max)), .init("all", .number(.max)),
    .init("half", .fraction("-0.50")), .init("", .string("")),
    .init("text", .string("\"\\\u{0}\u{8}\u{c}\n\r\t\u{1f} ~\u{7f}ü€😀")),
    .init("list", .array([.integer(0), .array([]), .object([])])),
  ])

  @Test func `what is written is read as it was`() {
    for text in [Self.sample.line, Self.sample.text, Self.sample.qemuText] {
      #expect(JSONParser.parse(text) == Self.sample)
    }
    #expect(!Self.sample.line.contains("\n"), "one line is one message")
  }

  @Test func `a whole number has one form`() {
    #expect(JSONValue.number(5) == .integer(5))
    #expect(JSONValue.number(1 << 63) == .unsigned(1 << 63))
    #expect(JSONParser.parse("9223372036854775808") == .number(1 << 63))
    #expect(JSONParser.parse("[-0, 1e3, 0.5]")?.line == "[0, 1e3, 0.5]")
  }

  @Test func `qemu-img escapes what is not ASCII and leaves no brackets empty on a line`() {
    let value = JSONValue.object([
      .init("name", .string("ü\u{8}😀\u{7f}\u{1}")), .init("flags", .array([])),
    ])
    #expect(
      value.qemuText == """
        {
            "name": "\\u00FC\\b\\uD83D\\uDE00\\u007F\\u0001",
            "flags": [
            ]
        }
        """)
    #expect(value.line == "{\"name\": \"ü\\u0008😀\u{7f}\\u0001\", \"flags\": []}")
  }

  @Test(arguments: [
    "", " ", "{", "{\"a\"", "{\"a\":}", "{\"a\":1,}", "{a:1}", "[1,", "[1,]", "[1 2]", "[,1]",
    "\"\\u12",
    "\"\\", "\"\\x\"", "\"\u{1}\"", "nul", "nulll", "1 2", "01", "-", "+1", "1.", ".5", "1e", "1e+",
    "99999999999999999999", "-9223372036854775809", "\"\\ud800\"", "\"\\ud800\\u0041\"",
    "\"\\udc00\"",
    "٣",
  ])
  func `what is not JSON is no value`(_ text: String) {
    #expect(JSONParser.parse(text) == nil)
  }

  @Test func `values are nested to a limit`() {
    func nested(_ depth: Int) -> String {
      String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
    }
    #expect(JSONParser.parse(nested(JSONParser.depthLimit)) != nil)
    #expect(JSONParser.parse(nested(JSONParser.depthLimit + 1)) == nil)
    #expect(JSONParser.parse(nested(100_000)) == nil)
    #expect(JSONParser.parse(String(repeating: "{\"a\":", count: 100_000)) == nil)
  }

  @Test func `bytes that are not UTF-8 are no text`() {
    #expect(JSONParser.parse([0x22, 0xff, 0x22]) == nil)
    #expect(JSONParser.parse([0x22, 0xc3, 0xbc, 0x22]) == .string("ü"))
  }

  @Test func `of two members with one name the first counts`() {
    #expect(JSONParser.parse("{\"a\": 1, \"a\": 2}")?["a"] == .integer(1))
  }

  /// Whatever becomes of the bytes, the parser ends, and what it takes can be written and read again.
  @Test func `mutated text is a value or none`() {
    var random = SeededGenerator(seed: testSeed("JSONTests"))
    let texts = [Self.sample.line, Self.sample.qemuText].map { Array($0.utf8) }
    for _ in 0..<20_000 {
      var bytes = texts[random.below(texts.count)]
      for _ in 0...random.below(4) { mutate(&bytes, &random) }
      guard let value = JSONParser.parse(bytes) else { continue }
      #expect(JSONParser.parse(value.line) == value)
    }
  }

  private func mutate(_ bytes: inout [UInt8], _ random: inout SeededGenerator) {
    guard !bytes.isEmpty else { return }
    let place = random.below(bytes.count)
    let signs = Array("{}[]\":,\\u0e-.tn \u{0}\u{7f}ü".utf8)
    switch random.below(4) {
    case 0: bytes[place] = signs[random.below(signs.count)]
    case 1: bytes.insert(signs[random.below(signs.count)], at: place)
    case 2: bytes.removeSubrange(place..<min(bytes.count, place + 7))
    default: bytes[place] = random.bytes(1)[0]
    }
  }
}
