import BlockCore
import Foundation
import QCOW2Engine
import TestTools
import Testing

/// What DISCARD and WRITE_ZEROES leave in the mapping: the same as QEMU's.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct ZeroFlagTests {
  /// What the clusters are before.
  enum Contents: String, CaseIterable, Sendable {
    case nothing, data, compressed, zeroFlag, zeroWithPlace, sharedWithSnapshot

    var commands: [String] {
      switch self {
      case .nothing: []
      case .data, .sharedWithSnapshot: ["write -P 3 0 256k"]
      case .compressed: ["write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 5 128k 64k"]
      case .zeroFlag: ["write -zu 0 256k"]
      case .zeroWithPlace: ["write -P 3 0 256k", "write -z 0 256k"]
      }
    }
  }

  struct Format: Sendable, CustomTestStringConvertible {
    var options: String
    var hasBacking: Bool
    var testDescription: String { options + (hasBacking ? ", backing" : "") }
  }

  static let formats = ["compat=0.10", "compat=1.1", "compat=1.1,extended_l2=on"].flatMap {
    [Format(options: $0, hasBacking: false), Format(options: $0, hasBacking: true)]
  }

  private static let size: UInt64 = 1 << 20

  /// A request in both programs' words.
  private struct Step {
    var command: String
    var operation: GuestOperation
  }

  private static let steps: [Step] = {
    var steps: [Step] = []
    for (offset, length): (UInt64, UInt64) in [(64, 64), (0, 192), (64, 512)] {
      let (start, count) = (offset << 10, length << 10)
      steps += [
        Step(command: "discard \(start) \(count)", operation: .discard(start, count)),
        Step(
          command: "write -z \(start) \(count)", operation: .zero(start, count, keeps: true)),
        Step(command: "write -zu \(start) \(count)", operation: .zero(start, count)),
      ]
    }
    for (start, count): (UInt64, UInt64) in [(1024, 2048), (1024, 196_608), (66_560, 512)] {
      steps.append(
        Step(command: "write -zu \(start) \(count)", operation: .zero(start, count)))
    }
    return steps
  }()

  /// Version 2 has no zero flag: zeros that keep their place are data there, to us alone.
  private func isComparable(_ step: Step, _ format: Format, _ contents: Contents) -> Bool {
    guard format.options == "compat=0.10" else { return true }
    if contents == .zeroFlag || contents == .zeroWithPlace { return false }
    return !step.operation.keepsAllocation || contents == .nothing
  }

  static let pairs = formats.flatMap { format in Contents.allCases.map { (format, $0) } }

  @Test(arguments: share(of: pairs))
  func theMappingIsTheSameAsAfterQEMU(_ format: Format, _ contents: Contents) throws {
    let scratch = try Scratch()
    try mustRun("qemu-img", "create", "-q", "-f", "raw", scratch.file("base.raw"), "1M")
    try mustRunQEMUIO(["-f", "raw", "-c", "write -P 9 0 1M", scratch.file("base.raw")])
    var random = SeededGenerator(seed: runSeed)
    let original = try DirectedImage(
      "cluster_size=64k," + format.options, size: Self.size,
      backing: format.hasBacking ? ("base.raw", "raw", .plain) : nil, in: scratch)
    if !contents.commands.isEmpty { try Qemu.io(original.disk.path, contents.commands) }
    if contents == .sharedWithSnapshot {
      try original.disk.image("snapshot", "-c", "before")
    }
    for (number, step) in Self.steps.enumerated() where isComparable(step, format, contents) {
      let theirs = try original.copy("theirs\(number).qcow2")
      let ours = try original.copy("ours\(number).qcow2")
      try Qemu.io(theirs.disk.path, [step.command])
      try withImage(ours.disk.path, &random) { session in
        let buffer = IOBuffer(count: 512)
        try await session.perform(
          BlockRequest(
            step.operation.kind, offset: GuestOffset(step.operation.range.lowerBound),
            length: UInt64(step.operation.range.count),
            keepsAllocation: step.operation.keepsAllocation), slot: 0)
        withExtendedLifetime(buffer) {}
      }
      try ours.disk.requireClean("after \(step.command)")
      #expect(try map(ours) == map(theirs), "\(step.command)")
      if format.options != "compat=0.10" && !format.hasBacking {
        // A backing file that the image gets afterwards shows in the same places, if anywhere.
        for image in [theirs, ours] {
          try mustRunQEMU(
            ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw"]
              + [image.disk.path])
        }
      }
      let compared = try runQEMU(
        ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", ours.disk.path, theirs.disk.path])
      #expect(compared.succeeded, "\(step.command): \(compared.output)")
    }
  }

  /// What `qemu-img map` says of a range, places left out.
  private struct Part: Codable, Equatable {
    var start: UInt64
    var length: UInt64
    var depth: Int
    var present: Bool
    var zero: Bool
    var data: Bool

    func isLike(_ other: Part) -> Bool {
      (depth, present, zero, data) == (other.depth, other.present, other.zero, other.data)
    }
  }

  /// The map with neighbours joined that differ in their places only.
  private func map(_ image: DirectedImage) throws -> [Part] {
    let text = try mustRunQEMU(["qemu-img", "map", "--output=json", "-f", "qcow2", image.disk.path])
    let parts = try JSONDecoder().decode([Part].self, from: Data(text.utf8))
    return parts.reduce(into: []) { joined, part in
      if let last = joined.last, last.isLike(part) {
        joined[joined.count - 1].length += part.length
      } else {
        joined.append(part)
      }
    }
  }
}
