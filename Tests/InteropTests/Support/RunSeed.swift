import Glibc
import TestTools

/// The run's seed: QUBLK_SEED, or a new one; printed once.
let runSeed: UInt64 = {
  let seed =
    getenv("QUBLK_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 1...999_999)
  print("InteropTests: QUBLK_SEED=\(seed)")
  return seed
}()
