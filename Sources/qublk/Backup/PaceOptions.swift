import ArgumentParser

/// How fast `backup` and `restore` copy.
struct PaceOptions: ParsableArguments {
  @Option(
    name: [.customShort("r"), .customLong("rate-limit")],
    help: "The most bytes a second; 0 for any number.")
  var rateLimit = ByteSize(bytes: 0)
  @Option(
    name: [.customShort("m"), .customLong("parallel")], help: "The requests in flight, 1 to 16.")
  var parallel = 8

  /// What is wrong with the options; nil for nothing.
  var problem: String? {
    (1...16).contains(parallel) ? nil : "-m is \(parallel), expected 1 to 16"
  }
}
