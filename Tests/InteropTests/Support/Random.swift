import Glibc

/// SplitMix64: the same numbers from the same seed, everywhere.
struct Random: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// True `percent` times in a hundred.
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }

  /// A generator whose numbers have nothing to do with this one's.
  mutating func fork() -> Random { Random(seed: next()) }
}

/// The run's seed: QUBLK_SEED, or a new one; printed once.
let runSeed: UInt64 = {
  let seed =
    getenv("QUBLK_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 1...999_999)
  print("InteropTests: QUBLK_SEED=\(seed)")
  return seed
}()
