package import QCOW2Codec

/// What an image under test has beyond standard clusters in one file.
package struct ImageFeatures: Sendable, Equatable {
  /// What the image reads where it has nothing of its own.
  package enum Backing: String, Sendable, CaseIterable {
    /// Raw files: ends in the middle of the disk, as long, longer, and not of whole sectors.
    case shorter, equal, longer, odd
    /// A qcow2 image with clusters of all kinds over a raw file.
    case layer
  }
  package enum DataFile: String, Sendable {
    /// External, and external with the promise to be a raw image of the disk.
    case plain, raw
  }

  package var isExtended = false
  package var backing: Backing?
  /// Where a shorter backing file ends, in whole sectors.
  package var backingSectors = 0
  package var dataFile: DataFile?
  package var cipher: IVBasis?

  package init() {}

  /// The length of a raw backing file of an image of `size` bytes.
  package func backingLength(_ size: Int) -> Int {
    switch backing {
    case nil: 0
    case .shorter: backingSectors * 512
    case .odd: backingSectors * 512 + 200
    case .equal: size
    case .longer, .layer: size + 96 * 512
    }
  }
}
