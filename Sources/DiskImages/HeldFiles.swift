import CPlatform
import Glibc

/// Files that another process opened and locked, and that go on being used: a lock, and the claim of a
/// block device, belong to the open file description.
package struct HeldFiles: Sendable {
  private struct Key: Hashable {
    let file: FileKey
    let readOnly: Bool
  }

  private let descriptors: [Key: Int32]

  /// The files behind these descriptors, which stay the caller's; what is no file of a disk is left out.
  package init(_ descriptors: [Int32]) {
    var found: [Key: Int32] = [:]
    for descriptor in descriptors {
      guard let key = Self.key(descriptor) else { continue }
      found[key] = descriptor
    }
    self.descriptors = found
  }

  private static func key(_ descriptor: Int32) -> Key? {
    let mode = fcntl(descriptor, F_GETFL) & O_ACCMODE
    guard let file = try? FileKey(descriptor) else { return nil }
    return Key(file: file, readOnly: mode == O_RDONLY)
  }

  /// A copy of the descriptor of the file that a path leads to now; nil if that is not held for this
  /// use, and if there is no room for a copy.
  func descriptor(of path: String, readOnly: Bool) -> Int32? {
    guard let file = try? FileKey(path: path),
      let held = descriptors[Key(file: file, readOnly: readOnly)]
    else { return nil }
    let copy = qublk_duplicate(held)
    return copy < 0 ? nil : copy
  }
}
