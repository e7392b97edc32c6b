import CPlatform

extension Errno: CustomStringConvertible {
  /// The text and the constant's name, "No such file or directory (ENOENT)": the form of messages.
  public var description: String {
    guard let text = qublk_errno_text(code) else { return "error \(code)" }
    guard let name = qublk_errno_name(code) else { return String(cString: text) }
    return "\(String(cString: text)) (\(String(cString: name)))"
  }
}
