package import QCOW2Codec

/// What `--object secret,id=ID,file=PATH` or `data=TEXT`, with `format=raw` or `base64`, stands for.
///
/// A passphrase in `data=` can be seen by everyone who may list processes: for tests and for scripts
/// written for QEMU's tools. The daemon takes none.
package struct ObjectSecret: Sendable {
  package let id: String
  package let secret: Secret

  /// Reads the option's text, and the file if it names one.
  package init(parsing text: String) throws(OptionTextError) {
    do throws(OptionTextError.Problem) {
      var list = try KeyValueList(parsing: text, impliedKey: "qom-type")
      guard try list.take("qom-type", among: ["secret"]) != nil else {
        throw .missing(key: "qom-type")
      }
      guard let id = list.take("id"), !id.isEmpty else { throw .missing(key: "id") }
      let isBase64 = try list.take("format", among: ["raw", "base64"]) == "base64"
      self.id = id
      secret = try Self.secret(&list, isBase64: isBase64)
      try list.requireNothingElse()
    } catch { throw OptionTextError(option: "--object", problem: error) }
  }

  private static func secret(
    _ list: inout KeyValueList, isBase64: Bool
  ) throws(OptionTextError.Problem) -> Secret {
    let data = list.take("data")
    let file = list.take("file")
    switch (data, file) {
    case (nil, nil): throw .missing(key: "data or file")
    case (.some, .some): throw .conflict("data", "file")
    case (.some(let data), nil):
      let bytes = Array(data.utf8)
      let raw = unsafe bytes.withUnsafeBytes { unsafe Secret(copying: $0) }
      return isBase64 ? try decoded(raw, of: .file("data")) : raw
    case (nil, .some(let path)):
      do throws(SecretError) {
        let raw = try SecretSource.file(path).read()
        if !isBase64 { return raw }
        guard let plain = Base64.decode(raw) else {
          throw SecretError(source: .file(path), problem: .notBase64)
        }
        return plain
      } catch { throw .secret(error) }
    }
  }

  private static func decoded(
    _ raw: Secret, of source: SecretSource
  ) throws(OptionTextError.Problem) -> Secret {
    guard let plain = Base64.decode(raw) else {
      throw .secret(SecretError(source: source, problem: .notBase64))
    }
    return plain
  }
}

extension [ObjectSecret] {
  /// The secret with an id.
  package func secret(_ id: String) -> Secret? { first { $0.id == id }?.secret }
}
