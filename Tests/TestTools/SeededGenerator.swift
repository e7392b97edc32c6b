/// A small deterministic generator (SplitMix64); the same seed gives the same test, everywhere.
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

  /// A generator whose numbers have nothing to do with this one's.
  package mutating func fork() -> SeededGenerator { SeededGenerator(seed: next()) }

  package mutating func bytes(_ count: Int) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(count + 8)
    while result.count < count {
      unsafe withUnsafeBytes(of: next()) { unsafe result.append(contentsOf: $0) }
    }
    return Array(result.prefix(count))
  }
}
