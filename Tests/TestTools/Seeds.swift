import Glibc

/// The seed of a random test: from the environment variable QUBLK_SEED, or `fallback`.
///
/// Printed, so that a failure can be repeated; `QUBLK_SEED=random` draws a new one.
package func testSeed(_ name: String, fallback: UInt64 = 1) -> UInt64 {
  var seed = fallback
  if let text = getenv("QUBLK_SEED").map({ String(cString: $0) }) {
    seed = UInt64(text) ?? UInt64(UInt32.random(in: 1...UInt32.max))
  }
  print("\(name): QUBLK_SEED=\(seed)")
  return seed
}

/// A whole number from the environment, for the size of long tests.
package func testSetting(_ name: String, default value: Int) -> Int {
  getenv(name).flatMap { Int(String(cString: $0)) } ?? value
}

/// Those of many like arguments that this run tries: all, or with QUBLK_SHARE=N one of N.
///
/// Which of N follows from QUBLK_SEED, so that N commits in a row try them all, on average. For arguments
/// that take long and differ little in what they can find.
package func share<Argument>(of all: [Argument]) -> [Argument] {
  let parts = max(1, testSetting("QUBLK_SHARE", default: 1))
  let chosen = testSetting("QUBLK_SEED", default: 1) % parts
  return all.indices.filter { $0 % parts == chosen }.map { all[$0] }
}
