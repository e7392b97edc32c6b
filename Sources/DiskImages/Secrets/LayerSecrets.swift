package import QCOW2Codec
import Synchronization

/// The passphrases for one opening of an image.
///
/// Each is handed out once, and all are dropped when the image is open or cannot be opened.
package final class LayerSecrets: Sendable {
  private struct Entry {
    let layer: Int?
    let secret: Secret
  }

  private let entries: Mutex<[Entry]>

  private init(entries: [Entry]) { self.entries = Mutex(entries) }

  /// No secrets.
  package convenience init() { self.init(entries: []) }

  /// The first for the topmost encrypted image of the chain, the next for the next one down.
  package convenience init(inOrder secrets: [Secret]) {
    self.init(entries: secrets.map { Entry(layer: nil, secret: $0) })
  }

  /// Each for one image of the chain, which is counted from 0, the image itself.
  package convenience init(byLayer secrets: [Int: Secret]) {
    self.init(entries: secrets.map { Entry(layer: $0.key, secret: $0.value) })
  }

  /// How many there are.
  package var count: Int { entries.withLock(\.count) }

  /// The secret for an encrypted layer; layers must ask from the top down.
  func take(_ layer: Int) -> Secret? {
    entries.withLock { entries in
      let index =
        entries.firstIndex { $0.layer == layer } ?? entries.firstIndex { $0.layer == nil }
      return index.map { entries.remove(at: $0).secret }
    }
  }

  /// The secret that ``take(_:)`` would hand out for the image itself.
  package var first: Secret? {
    entries.withLock { entries in
      (entries.first { $0.layer == 0 } ?? entries.first { $0.layer == nil })?.secret
    }
  }

  /// Drops the secrets that no layer took.
  ///
  /// - Returns: How many they were.
  func dropRest() -> Int {
    entries.withLock { entries in
      defer { entries = [] }
      return entries.count
    }
  }

  /// Drops all: for a process that opens no image.
  package func dropAll() { _ = dropRest() }
}
