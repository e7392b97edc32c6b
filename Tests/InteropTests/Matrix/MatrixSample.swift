import TestTools

/// A choice of combinations in which each value and each pair of values occurs that can occur.
struct MatrixSample {
  private(set) var cases: [MatrixCase] = []
  /// How many pairs of values there are that qemu-img accepts together.
  private(set) var pairs = 0
  private var random: SeededGenerator
  private var uncovered: Set<Pair> = []

  private struct Pair: Hashable {
    let dimensions: [Int]
    let values: [Int]
    /// Makes the choice the same in each run.
    var order: [Int] { dimensions + values }
  }

  /// Draws `count` combinations, or as many more as it takes.
  init(_ random: SeededGenerator, count: Int) {
    self.random = random
    findPairs()
    while let pair = uncovered.min(by: { $0.order.lexicographicallyPrecedes($1.order) }) {
      add(best(with: pair))
    }
    while cases.count < count { add(draw()) }
  }

  private static let counts = MatrixCase.counts

  /// Walks through all valid combinations until every possible pair has been seen.
  private mutating func findPairs() {
    var seen = [Bool](repeating: false, count: 64 * 64 * 64)
    Self.forEachValid { choices in
      for one in 0..<choices.count {
        for other in (one + 1)..<choices.count {
          let index = ((one * 16 + other) * 16 + choices[one]) * 16 + choices[other]
          if seen[index] { continue }
          seen[index] = true
          uncovered.insert(
            Pair(dimensions: [one, other], values: [choices[one], choices[other]]))
        }
      }
    }
    pairs = uncovered.count
  }

  private static func forEachValid(_ body: ([Int]) -> Void) {
    var choices = counts.map { _ in 0 }
    while true {
      if MatrixCase(choices: choices).isValid { body(choices) }
      guard let next = choices.indices.last(where: { choices[$0] + 1 < counts[$0] }) else { return }
      choices[next] += 1
      for index in (next + 1)..<choices.count { choices[index] = 0 }
    }
  }

  private mutating func add(_ chosen: MatrixCase) {
    cases.append(chosen)
    uncovered = uncovered.filter { !Self.has(chosen, $0) }
  }

  private static func has(_ chosen: MatrixCase, _ pair: Pair) -> Bool {
    chosen.choices[pair.dimensions[0]] == pair.values[0]
      && chosen.choices[pair.dimensions[1]] == pair.values[1]
  }

  /// Of several combinations with a pair the one with the most pairs that are still missing.
  private mutating func best(with pair: Pair) -> MatrixCase {
    var best = draw(with: pair)
    var bestScore = score(best)
    for _ in 0..<24 {
      let other = draw(with: pair)
      let score = score(other)
      if score > bestScore { (best, bestScore) = (other, score) }
    }
    return best
  }

  private func score(_ chosen: MatrixCase) -> Int {
    uncovered.count { Self.has(chosen, $0) }
  }

  private mutating func draw(with pair: Pair) -> MatrixCase {
    while true {
      var choices = Self.counts.map { Int.random(in: 0..<$0, using: &random) }
      for index in 0..<2 { choices[pair.dimensions[index]] = pair.values[index] }
      let drawn = MatrixCase(choices: choices)
      if drawn.isValid { return drawn }
    }
  }

  /// Any valid combination; LUKS seldom, as qemu-img takes seconds to make such an image.
  private mutating func draw() -> MatrixCase {
    while true {
      let drawn = MatrixCase(
        choices: Self.counts.map { Int.random(in: 0..<$0, using: &random) })
      if drawn.isValid && (drawn.cipher != .luks || random.chance(10)) { return drawn }
    }
  }
}
