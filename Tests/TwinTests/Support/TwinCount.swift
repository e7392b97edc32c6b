import Glibc
import Synchronization
import TestTools

/// How many operations both programs have carried out, by command; printed when the tests end.
enum TwinCount {
  /// The seed of all samples and choices: QUBLK_TWIN_SEED, or one whose every difference is known.
  ///
  /// Not that of the commit: with others, qemu-img itself now and then loses data, leaves errors, or
  /// refuses, and each of these wants a look.
  static let seed: UInt64 = {
    atexit {
      TwinCount.report()
      Sample.removeShared()
    }
    return UInt64(testSetting("QUBLK_TWIN_SEED", default: 78))
  }()

  private static let counts = Mutex<[String: Int]>([:])

  static func note(_ command: String) { counts.withLock { $0[command, default: 0] += 1 } }

  private static func report() {
    let counts = counts.withLock { $0 }
    let list = counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
    print(
      "twins: \(counts.values.reduce(0, +)) operations, seed \(seed) ("
        + list.joined(separator: ", ") + ")")
  }
}
