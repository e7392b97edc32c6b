import QCOW2Format

/// What became of an image's persistent bitmaps when it was opened for writing.
package struct BitmapReport: Sendable {
  /// The bitmaps of a directory that makes sense, tracked or not; their tables fit the virtual
  /// size.
  package var count = 0
  /// The names of the bitmaps that follow every change while the image is open.
  package var tracked: [String] = []
  /// The bitmaps that had to be marked "in use", with why: their bits are no longer to be trusted.
  package var given: [(name: String, why: String)] = []
  /// Why all bitmaps had to be declared inconsistent; nil if they were not.
  package var inconsistent: String?

  package init() {}

  /// What was given up, a line for each, to be told to the user.
  package var warnings: [String] {
    let all = inconsistent.map { ["persistent bitmaps are no longer valid: \($0)"] } ?? []
    return all
      + given.map { "bitmap \"\($0.name)\" is marked in use, it cannot be tracked: \($0.why)" }
  }
}
