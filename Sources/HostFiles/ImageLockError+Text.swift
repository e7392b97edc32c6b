extension ImageLockError {
  /// What is in the way, after "IMAGE: ".
  package var text: String {
    switch self {
    case .inUse(let permission, let holder):
      Self.inUse(holder, "has its \"\(permission.name)\" lock")
    case .refused(let permission, let holder):
      Self.inUse(holder, "does not share \"\(permission.name)\"")
    case .system(let errno): "cannot lock the image: \(errno)"
    }
  }

  private static func inUse(_ holder: LockHolder?, _ lock: String) -> String {
    let fact = holder?.device.map { "serves it as \($0)" } ?? lock
    return "image is in use: \(name(holder)) \(fact)"
  }

  private static func name(_ holder: LockHolder?) -> String {
    guard let holder else { return "another process" }
    return "\(holder.name) (process \(holder.process))"
  }
}
