package import QCOW2Format

/// Which internal snapshot of an image is meant.
package enum SnapshotSelector: Sendable, Equatable {
  /// By ID or, if no snapshot has that ID, by name: as `qemu-img -l` does.
  case idOrName(String)
  case id(String)
  case name(String)
  /// Both must be right.
  case exact(id: String, name: String)

  /// Reads what QEMU takes for a snapshot: an ID or name, or a list of `snapshot.id=` and
  /// `snapshot.name=`.
  package init(parsing text: String) {
    var id: String?
    var name: String?
    for item in text.split(separator: ",") {
      if item.hasPrefix("snapshot.id=") { id = String(item.dropFirst("snapshot.id=".count)) }
      if item.hasPrefix("snapshot.name=") { name = String(item.dropFirst("snapshot.name=".count)) }
    }
    self =
      switch (id, name) {
      case (let id?, let name?): .exact(id: id, name: name)
      case (let id?, nil): .id(id)
      case (nil, let name?): .name(name)
      case (nil, nil): .idOrName(text)
      }
  }

  /// The first snapshot meant, in the order of the table.
  package func first(in snapshots: [Snapshot]) -> Snapshot? {
    switch self {
    case .idOrName(let text):
      snapshots.first { $0.id == text } ?? snapshots.first { $0.name == text }
    case .id(let id): snapshots.first { $0.id == id }
    case .name(let name): snapshots.first { $0.name == name }
    case .exact(let id, let name): snapshots.first { $0.id == id && $0.name == name }
    }
  }

  /// The selector as it stands in messages.
  package var text: String {
    switch self {
    case .idOrName(let text): "the ID or name \"\(text)\""
    case .id(let id): "the ID \"\(id)\""
    case .name(let name): "the name \"\(name)\""
    case .exact(let id, let name): "the ID \"\(id)\" and the name \"\(name)\""
    }
  }
}
