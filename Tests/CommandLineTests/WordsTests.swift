import TestTools
import Testing

@testable import qublk

@Suite struct WordsTests {
  private static let tree = CommandTree()

  @Test(arguments: [
    (["io", "-rfqcow2", "a"], ["io", "-r", "--format=qcow2", "--", "a"]),
    (["check", "--outp", "json", "a"], ["check", "--output=json", "--", "a"]),
    (["check", "-r", "-x", "a"], ["check", "--repair=-x", "--", "a"]),
    (["create", "a", "-1G", "-q"], ["create", "-q", "--", "a", "-1G"]),
    (["create", "--", "-q"], ["create", "--", "-q"]),
    (["delete", "-f", "0"], ["delete", "-f", "--", "0"]),
    (["io", "-c", "read -P 1 0 4k", "-r"], ["io", "--cmd=read -P 1 0 4k", "-r"]),
    (["--version"], ["--version"]),
  ])
  func wordsAreReadAsGetoptReadsThem(_ words: [String], _ expected: [String]) throws {
    #expect(try GetoptWords(words, Self.tree).words == expected)
  }

  @Test(arguments: [
    (["chekc"], "unknown subcommand \"chekc\": did you mean \"check\"?"),
    (["create", "--hlep"], "create: unknown option \"--hlep\": did you mean \"--help\"?"),
    (["info", "-x.qcow2"], "info: unknown option \"-x\": \"qublk info --help\" lists them all"),
    (["add", "-n"], "option \"-n\" needs a value"),
    (["io", "--misalign=yes"], "option \"--misalign\" takes no value, found \"yes\""),
  ])
  func problemsAreNamed(_ words: [String], _ text: String) {
    let problem = #expect(throws: GetoptWords.Problem.self) { try GetoptWords(words, Self.tree) }
    #expect(problem?.text(Self.tree) == text)
  }

  /// qemu-img's letters, so that none is lost to a default of the parser's.
  @Test(arguments: [
    (
      "bench", "c count d depth f format o offset s buffer-size S step-size t cache w write q quiet"
    ),
    ("bench", "i aio n native U force-share"),
    ("io", "c cmd f format r read-only t cache k native-aio"),
  ])
  func lettersAndLongNamesAreQEMUs(_ command: String, _ names: String) throws {
    let command = try #require(Self.tree.command(command))
    let words = names.split(separator: " ").map(String.init)
    for index in stride(from: 0, to: words.count, by: 2) {
      let option = try #require(command.option("-\(words[index])"), "-\(words[index])")
      #expect(option.names.contains("--\(words[index + 1])"), "\(option.names)")
    }
  }

  /// Every option of every command, with a value that it cannot have: an error, in words, by an exit.
  @Test(arguments: sweep()) func wrongArgumentsAreAnswered(_ words: [String]) throws {
    let outcome = try Subprocess(qublkPath(), words).finish(within: 30)
    #expect(outcome.status > 0 && outcome.status < 128, "\(words): \(outcome.status)")
    let first = outcome.errors.split(separator: "\n").first.map(String.init) ?? ""
    #expect(first.hasPrefix("qublk: ") && first.count > 12, "\(words): \(first)")
  }

  /// One of so many commands, chosen by the seed.
  private static func sweep() -> [[String]] {
    let values = ["", "-", "-1", "99999999999999999999", "x=y,,", "\u{1}", "nonsense"]
    var all: [[String]] = []
    for command in tree.commands where command.names[0] != "help" {
      for option in command.options where option.takesValue {
        all.append([command.names[0], option.name])
        for value in values {
          all.append([command.names[0], "\(option.name)", value, "/nowhere/x"])
        }
      }
      all.append([command.names[0], "--nonsense"])
      for option in command.options where !option.takesValue {
        guard !option.names.contains("--help"), !option.names.contains("--version") else {
          continue
        }
        all.append([command.names[0], option.name + (option.name.hasPrefix("--") ? "=x" : "?")])
      }
    }
    var generator = SeededGenerator(seed: testSeed("WordsTests", fallback: 1))
    return Array(all.shuffled(using: &generator).prefix(testSetting("QUBLK_SWEEP", default: 120)))
  }

  @Test(
    arguments: [
      (0, [:], [0]), (0, ["SUDO_UID": "1000"], [0, 1000]),
      (0, ["PKEXEC_UID": "7", "SUDO_UID": "1000"], [0, 7, 1000]),
      (0, ["SUDO_UID": "-1"], [0]), (0, ["SUDO_UID": "root"], [0]),
      // The environment of an ordinary user makes nobody else trusted.
      (1000, ["SUDO_UID": "0"], [1000]),
    ] as [(UInt32, [String: String], Set<UInt32>)])
  func whoCalled(_ effective: UInt32, _ variables: [String: String], _ expected: Set<UInt32>) {
    #expect(Caller.users(effective: effective) { variables[$0] } == expected)
  }
}
