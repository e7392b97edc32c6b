package import QCOW2Codec

/// What `--object secret,id=ID,file=PATH` or `data=TEXT`, with `format=raw` or `base64`, stands
/// for.
///
/// A passphrase in `data=` can be seen by everyone who may list processes: for tests and for
/// scripts written for QEMU's tools. The daemon takes none.
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
      return try secret(from: .file("data"), isBase64) { () throws(SecretError) in
        let bytes = Array(data.utf8)
        do throws(SecretError.Problem) {
          return unsafe try Secret(count: bytes.count) { (target) throws(SecretError.Problem) in
            unsafe target.copyBytes(from: bytes)
          }
        } catch { throw SecretError(source: .file("data"), problem: error) }
      }
    case (nil, .some(let path)):
      let source = SecretSource.file(path)
      return try secret(from: source, isBase64) { () throws(SecretError) in try source.read() }
    }
  }

  private static func secret(
    from source: SecretSource, _ isBase64: Bool, _ read: () throws(SecretError) -> Secret
  ) throws(OptionTextError.Problem) -> Secret {
    do throws(SecretError) {
      let raw = try read()
      if !isBase64 { return raw }
      do throws(SecretError.Problem) { return try Base64.decode(raw) } catch {
        throw SecretError(source: source, problem: error)
      }
    } catch { throw .secret(error) }
  }
}

extension [ObjectSecret] {
  /// The secret with an id.
  package func secret(_ id: String) -> Secret? { first { $0.id == id }?.secret }
}
