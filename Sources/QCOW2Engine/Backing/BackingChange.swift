import BlockCore
import QCOW2Format

extension Image {
  /// What the header says of the backing file.
  package enum BackingName: Sendable {
    case none
    /// The name, and the format if the header is to say one.
    case file(String, format: String?)
  }

  /// Replaces the backing file while requests wait: first in the header, durably, then for requests.
  ///
  /// The guest sees no difference: the caller has seen to it that the disk reads the same through the
  /// new chain, and that the new layer's files have numbers that every worker knows. A crash leaves the
  /// old name or the new one. Requests that were planned on the old chain have ended before.
  ///
  /// - Parameters:
  ///   - layer: Opened by the caller; nil for none.
  ///   - name: What the header is to say; nil to leave it.
  /// - Returns: The layer that was there, which nobody uses any more.
  /// - Throws: With nothing replaced. ``ImageError/headerFull`` if the name has no room.
  package func replaceBacking(
    with layer: (any BackingLayer)?, name: BackingName?
  ) async throws(ImageError) -> (any BackingLayer)? {
    if options.readOnly && name != nil { throw .readOnly }
    // The longest part, beside the guest: nothing points at the bytes yet.
    let change = try await prepare(name)
    var old: (any BackingLayer)?
    try await exclusively { () async throws(ImageError) in
      if let change { try await self.durability.headerEditor.setBackingFile(change) }
      assert(!self.gate.isOpen, "the backing file is replaced under requests")
      old = self.reader.backingSlot.replace(with: layer)
    }
    return old
  }

  /// Throws ``ImageError/headerFull`` if ``replaceBacking(with:name:)`` would; writes nothing.
  package func requireRoom(forBackingName name: BackingName) async throws(ImageError) {
    guard case .file(let text, let format) = name else { return }
    try await durability.headerEditor.requireRoom(
      forBackingFile: text, format: format, clusterSize: Int(geometry.clusterSize))
  }

  private func prepare(
    _ name: BackingName?
  ) async throws(ImageError) -> BackingNameChange? {
    guard case .file(let text, let format) = name else {
      return name == nil ? nil : BackingNameChange.none
    }
    return try await durability.headerEditor.prepareBackingFile(
      text, format: format, clusterSize: Int(geometry.clusterSize))
  }
}
