package import JSON

/// The answer of `info`: an object with the keys of qemu-img in its order.
///
/// The text for people is made from the object, so that an answer that came from another process reads the same.
package struct ImageInfoReport: Equatable, Sendable {
  /// The object.
  package let json: JSONValue

  init(_ members: [JSONValue.Member]) { json = .object(members) }

  /// An answer that ``json`` was made from; nil for what is no object.
  package init?(json: JSONValue) {
    if json.members == nil { return nil }
    self.json = json
  }

  /// The object as qemu-img prints it, with a line break.
  package var jsonText: String { json.qemuText + "\n" }
}
