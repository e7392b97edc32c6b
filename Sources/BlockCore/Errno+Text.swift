import CPlatform

extension Errno: CustomStringConvertible {
  /// The text and the constant's name, "No such file or directory (ENOENT)": the form of messages.
  public var description: String {
    guard let text = unsafe qublk_errno_text(code) else { return "error \(code)" }
    guard let name = unsafe qublk_errno_name(code) else { return unsafe String(cString: text) }
    return unsafe "\(String(cString: text)) (\(String(cString: name)))"
  }
}
