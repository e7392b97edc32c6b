import TestTools

/// The run's seed: QUBLK_SEED, or a new one; printed once.
let runSeed = testSeed("InteropTests", fallback: .random(in: 1...999_999))
