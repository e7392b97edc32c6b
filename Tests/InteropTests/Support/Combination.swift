import TestTools

/// One way to make an image with qemu-img.
struct Combination: CustomStringConvertible, Sendable {
  enum Preallocation: String, CaseIterable, Sendable { case off, metadata, falloc }

  var clusterSize: UInt64
  /// The refcount width of a version 3 image; nil for version 2.
  var refcountBits: Int?
  var preallocation: Preallocation
  var lazyRefcounts: Bool
  var hasSnapshot: Bool

  static let clusterSizes: [UInt64] = [512, 4096, 65536, 2 << 20]
  /// nil stands for compat=0.10.
  static let widths: [Int?] = [nil, 1, 2, 4, 8, 16, 32, 64]

  /// At least one of each cluster size with each width, and as many again with all else random.
  static func sample(_ random: inout SeededGenerator) -> [Combination] {
    var all: [Combination] = []
    for _ in 0..<2 {
      for clusterSize in clusterSizes {
        for width in widths {
          all.append(
            Combination(
              clusterSize: clusterSize, refcountBits: width,
              preallocation: Preallocation.allCases.randomElement(using: &random) ?? .off,
              lazyRefcounts: width != nil && random.chance(50),
              // A refcount of one bit cannot count a snapshot.
              hasSnapshot: width != 1 && random.chance(50)))
        }
      }
    }
    return all
  }

  var description: String {
    "cluster_size=\(clusterSize) "
      + (refcountBits.map { "compat=1.1 refcount_bits=\($0)" } ?? "compat=0.10")
      + " preallocation=\(preallocation.rawValue)"
      + (lazyRefcounts ? " lazy_refcounts" : "") + (hasSnapshot ? " snapshot" : "")
  }

  private var options: String {
    var options = "cluster_size=\(clusterSize),preallocation=\(preallocation.rawValue)"
    if let refcountBits {
      options += ",compat=1.1,refcount_bits=\(refcountBits)"
      if lazyRefcounts { options += ",lazy_refcounts=on" }
    } else {
      options += ",compat=0.10"
    }
    return options
  }

  /// A virtual size for which the image has several tables of most kinds, and an odd end.
  func diskSize(_ random: inout SeededGenerator) -> UInt64 {
    let whole: UInt64 =
      switch clusterSize {
      case 512: 3 << 20
      case 4096: 12 << 20
      case 65536: preallocation == .off ? 520 << 20 : 40 << 20
      default: 40 << 20
      }
    return whole + UInt64.random(in: 0..<(2 * clusterSize / 512 + 8), using: &random) * 512
  }

  /// Makes the image.
  func create(_ path: String, size: UInt64) throws {
    try mustRun("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, String(size))
  }
}
