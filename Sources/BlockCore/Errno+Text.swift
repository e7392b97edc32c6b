import CPlatform

extension Errno: CustomStringConvertible {
  /// The text and the constant's name, "No such file or directory (ENOENT)": the form of messages.
  ///
  /// With the limit, if that is what it is about.
  public var description: String {
    self == .descriptors
      ? "\(text): the limit is \(qublk_process_descriptor_limit()) (ulimit -n)" : text
  }

  private var text: String {
    guard let text = unsafe qublk_errno_text(code) else { return "error \(code)" }
    guard let name = unsafe qublk_errno_name(code) else { return unsafe String(cString: text) }
    return unsafe "\(String(cString: text)) (\(String(cString: name)))"
  }
}
