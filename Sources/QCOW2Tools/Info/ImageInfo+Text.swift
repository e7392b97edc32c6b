import JSON

/// `info` for people: the text of qemu-img.
extension ImageInfoReport {
  /// The text, with line breaks.
  package var humanText: String {
    var lines = [
      "image: \(text("filename"))",
      "file format: \(text("format"))",
      "virtual size: \(SizeText.short(number("virtual-size"))) (\(number("virtual-size")) bytes)",
      "disk size: \(SizeText.short(number("actual-size")))",
    ]
    if json["encrypted"]?.bool == true { lines.append("encrypted: yes") }
    if let size = json["cluster-size"]?.unsigned { lines.append("cluster_size: \(size)") }
    if json["dirty-flag"]?.bool == true { lines.append("cleanly shut down: no") }
    lines += backingLines + Self.limitLines(json) + snapshotLines
    let specific = json["format-specific"] == nil ? "" : specificText
    return lines.joined(separator: "\n") + "\n" + specific + childText
  }

  /// The nodes below the image.
  private var childText: String {
    (json["children"]?.array ?? []).map { child in
      let info = child["info"] ?? .null
      let length = info["virtual-size"]?.unsigned ?? 0
      let lines =
        [
          "filename: \(info["filename"]?.string ?? "")",
          "protocol type: \(info["format"]?.string ?? "")",
          "file length: \(SizeText.short(length)) (\(length) bytes)",
          "disk size: \(SizeText.short(info["actual-size"]?.unsigned ?? 0))",
        ] + Self.limitLines(info)
      return "Child node '/\(child["name"]?.string ?? "")':\n"
        + lines.map { "    \($0)\n" }.joined()
    }.joined()
  }

  private static func limitLines(_ node: JSONValue) -> [String] {
    guard let limits = node["limits"]?.members else { return [] }
    return ["Block limits:"]
      + limits.map { "    \($0.name.replacing("-", with: " ")): \($0.value.line)" }
  }

  /// The part of the text that is about the format, with line breaks.
  package var specificText: String {
    let members = json["format-specific"]?["data"]?.members ?? []
    let lines = members.flatMap { Self.lines($0.name, $0.value, indent: 1) }
    return "Format specific information:\n" + lines.joined(separator: "\n") + "\n"
  }

  private func text(_ name: String) -> String { json[name]?.string ?? "" }

  private func number(_ name: String) -> UInt64 { json[name]?.unsigned ?? 0 }

  private var backingLines: [String] {
    guard let file = json["backing-filename"]?.string else { return [] }
    let full = json["full-backing-filename"]?.string ?? file
    let name = "backing file: \(file)\(full == file ? "" : " (actual path: \(full))")"
    guard let format = json["backing-filename-format"]?.string else { return [name] }
    return [name, "backing file format: \(format)"]
  }

  private var snapshotLines: [String] {
    json["snapshots"].flatMap(SnapshotListReport.init(json:))?.lines ?? []
  }

  /// A member of the format specific information: its value, or its members below it.
  private static func lines(_ name: String, _ value: JSONValue, indent: Int) -> [String] {
    let margin = String(repeating: "    ", count: indent)
    let title = "\(margin)\(name.replacing("-", with: " ")):"
    switch value {
    case .string(let text): return ["\(title) \(text)"]
    case .null, .integer, .unsigned, .fraction, .bool: return ["\(title) \(value.line)"]
    case .array(let values):
      return [title]
        + values.enumerated().flatMap { lines("[\($0)]", $1, indent: indent + 1) }
    case .object(let members):
      return [title] + members.flatMap { lines($0.name, $0.value, indent: indent + 1) }
    }
  }
}
