import Glibc

/// A small deterministic generator (splitmix64); the same seed gives the same test.
package struct SeededGenerator: RandomNumberGenerator, Sendable {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }

  /// A number from 0 to `bound` - 1; the slight bias does not matter to tests.
  package mutating func below(_ bound: Int) -> Int { Int(next() >> 1) % bound }

  /// True `percent` times in a hundred.
  package mutating func chance(_ percent: Int) -> Bool { below(100) < percent }
}

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

/// Counts the events of one simulation, so that logs of different layers can be compared.
package final class LogicalClock: @unchecked Sendable {  // why: one thread per simulation
  package private(set) var now: UInt64 = 0

  package init() {}

  /// The time of a new event.
  package func tick() -> UInt64 {
    now += 1
    return now
  }
}
