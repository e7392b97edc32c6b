import BlockCore
import QCOW2Format
import Testing

@Suite struct HeaderExtensionTests {
  private func list(
    _ bytes: [UInt8], from start: Int = 0, to end: Int? = nil
  ) throws -> [HeaderExtension] {
    try HeaderExtension.list(in: bytes.span, from: start, to: end ?? bytes.count)
  }

  private func entry(_ kind: UInt32, _ length: UInt32, _ data: [UInt8]) -> [UInt8] {
    [kind, length].flatMap { word in (0..<4).map { UInt8(word >> (24 - 8 * $0) & 0xff) } } + data
  }

  @Test func extensionsAreListedUpToTheEndMarker() throws {
    let bytes =
      entry(0xe279_2aca, 5, Array("qcow2".utf8) + [0, 0, 0]) + entry(0x1234_5678, 0, [])
      + entry(0, 0, []) + entry(0x6803_f857, 999, [])
    let found = try list(bytes)
    #expect(found.map(\.kind) == [.backingFormat, .init(rawValue: 0x1234_5678)])
    #expect(found.map(\.offset) == [8, 24])
    #expect(found.map(\.length) == [5, 0])
  }

  @Test func theAreaMayEndWithoutAMarker() throws {
    let bytes = entry(1, 8, [UInt8](repeating: 7, count: 8))
    #expect(try list(bytes).count == 1)
    #expect(try list(bytes, to: 0).isEmpty)
    #expect(try list([]).isEmpty)
  }

  /// The padding of the last extension may be cut off by the end of the area.
  @Test func paddingNeedsNoSpace() throws {
    #expect(try list(entry(1, 3, [1, 2, 3])).count == 1)
  }

  @Test(arguments: [UInt32(1), 9, 4096, .max])
  func anExtensionThatDoesNotFitIsRefused(length: UInt32) {
    let bytes = entry(1, length, [])
    #expect(throws: FormatError.self) { try list(bytes) }
  }

  @Test(arguments: 1...7) func aPartOfAnExtensionIsRefused(count: Int) {
    let bytes = [UInt8](entry(1, 0, []).prefix(count))
    #expect(throws: FormatError.self) { try list(bytes) }
  }

  @Test func theEncryptionPointerHasSixteenBytes() throws {
    let bytes: [UInt8] = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    let pointer = try EncryptionHeaderPointer(parsing: bytes.span)
    #expect(pointer.offset == HostOffset(65536))
    #expect(pointer.length == 512)
    #expect(pointer.encoded == bytes)
    for count in [0, 15, 17] {
      #expect(throws: FormatError.self) {
        try EncryptionHeaderPointer(parsing: [UInt8](repeating: 0, count: count).span)
      }
    }
  }

  @Test func theFeatureNameTableSurvivesARoundTrip() {
    let bytes = FeatureNames.standard.encoded
    #expect(bytes.count == 8 * FeatureNames.entryLength)
    #expect(FeatureNames(parsing: bytes) == .standard)
    #expect(FeatureNames.standard.name(of: 4, in: .incompatible) == "extended L2 entries")
    #expect(FeatureNames.standard.name(of: 5, in: .incompatible) == nil)
    #expect(FeatureNames(parsing: [UInt8](bytes.dropLast())).entries.count == 7)
    let long = FeatureNames(entries: [.init(.autoclear, 63, String(repeating: "x", count: 99))])
    #expect(FeatureNames(parsing: long.encoded).entries[0].name.count == 46)
    #expect(FeatureNames(parsing: [3, 0] + [UInt8](repeating: 65, count: 46)).entries.isEmpty)
  }
}
