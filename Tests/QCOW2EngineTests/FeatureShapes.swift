import QCOW2Codec
import QCOW2Engine
import TestSupport

/// Images with what goes beyond standard clusters in one file.
extension ImageShape {
  private static func make(
    _ bits: Int, _ contents: Contents = .prefilled, version: Int = 3,
    _ adjust: (inout ImageShape) -> Void
  ) -> ImageShape {
    var shape = ImageShape(clusterBits: bits, version: version, contents: contents)
    adjust(&shape)
    return shape
  }

  static let extended: [ImageShape] = [
    make(14, .empty) { $0.features.isExtended = true },
    make(14) { $0.features.isExtended = true },
    make(14, .snapshot) { $0.features.isExtended = true },
    make(16, .preallocatedZero) { $0.features.isExtended = true },
  ]

  static let compressed: [ImageShape] = [
    make(9) { $0.hasCompressed = true },
    make(12) { $0.hasCompressed = true },
    make(12, .snapshot) { $0.hasCompressed = true },
    make(14) {
      $0.hasCompressed = true
      $0.features.isExtended = true
    },
    make(12, version: 2) {
      $0.hasCompressed = true
      $0.features.backing = .shorter
    },
  ]

  static let compressing: [ImageShape] = [
    make(12, .empty) { $0.compressesWrites = true },
    make(12) {
      $0.hasCompressed = true
      $0.compressesWrites = true
      $0.alignment = 512
    },
    make(9, .snapshot) {
      $0.hasCompressed = true
      $0.compressesWrites = true
    },
    make(14) {
      $0.compressesWrites = true
      $0.features.isExtended = true
      $0.features.backing = .layer
    },
  ]

  static let backed: [ImageShape] = [
    make(12) { $0.features.backing = .shorter },
    make(12) { $0.features.backing = .equal },
    make(12) { $0.features.backing = .longer },
    make(12) { $0.features.backing = .odd },
    make(12) { $0.features.backing = .layer },
    make(9, version: 2) { $0.features.backing = .odd },
    make(9, .snapshot) { $0.features.backing = .layer },
    make(14) {
      $0.features.backing = .odd
      $0.features.isExtended = true
    },
    make(16, .preallocatedZero) {
      $0.features.backing = .longer
      $0.features.isExtended = true
    },
  ]

  static let externalData: [ImageShape] = [
    make(9, .empty) { $0.features.dataFile = .plain },
    make(12) { $0.features.dataFile = .plain },
    make(9) { $0.features.dataFile = .raw },
    make(12, .preallocatedZero) { $0.features.dataFile = .raw },
    make(12) {
      $0.features.dataFile = .plain
      $0.features.backing = .odd
    },
    make(14) {
      $0.features.dataFile = .plain
      $0.features.isExtended = true
    },
  ]

  static let ciphered: [ImageShape] = [
    make(9) { $0.features.cipher = .guest },
    make(12, .snapshot) { $0.features.cipher = .host },
    make(12) {
      $0.features.cipher = .guest
      $0.features.backing = .odd
    },
    make(14) {
      $0.features.cipher = .host
      $0.features.isExtended = true
      $0.features.backing = .layer
    },
    make(9) {
      $0.features.cipher = .host
      $0.features.dataFile = .plain
    },
  ]

  static let copyingOnRead: [ImageShape] = [
    make(12) {
      $0.features.backing = .odd
      $0.copiesOnRead = true
    },
    make(9, .snapshot) {
      $0.features.backing = .layer
      $0.copiesOnRead = true
    },
    make(14) {
      $0.features.backing = .layer
      $0.features.isExtended = true
      $0.copiesOnRead = true
    },
    make(12) {
      $0.features.backing = .longer
      $0.features.cipher = .host
      $0.copiesOnRead = true
    },
  ]

  static let featured: [ImageShape] = [
    extended, compressed, compressing, backed, externalData, ciphered, copyingOnRead,
  ].flatMap { $0 }

  /// What a discard may leave in such an image.
  var discards: WorkloadOptions.Discards {
    if features.dataFile == .raw { return .anything }
    if version == 2 && features.backing != nil { return .either }
    return features.isExtended && (hasCompressed || compressesWrites) ? .zeroesInClusters : .zeroes
  }

  /// Sets what an image of this shape is opened with.
  func adjust(_ bench: Bench) {
    bench.options.compressesWrites = compressesWrites
    bench.options.copyOnRead = copiesOnRead
    bench.memory.clears = device == .clearing
  }

  /// Sets what a workload must know of such an image.
  func adjust(_ options: inout WorkloadOptions) {
    options.discards = discards
    options.wholeClusters = compressesWrites ? 60 : 0
  }

  /// Transfers may meet in a sector where compressed clusters lie at any byte.
  var sharesSectors: Bool { (hasCompressed || compressesWrites) && alignment == 1 }
}
