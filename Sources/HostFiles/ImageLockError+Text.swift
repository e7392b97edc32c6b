extension ImageLockError {
  /// What is in the way, after "IMAGE: ".
  package var text: String {
    switch self {
    case .inUse(let permission, let holder):
      "image is in use: \(Self.name(holder)) has its \"\(permission.name)\" lock"
    case .refused(let permission, let holder):
      "image is in use: \(Self.name(holder)) does not share \"\(permission.name)\""
    case .system(let errno): "cannot lock the image: \(errno)"
    }
  }

  private static func name(_ holder: LockHolder?) -> String {
    guard let holder else { return "another process" }
    return "\(holder.name) (process \(holder.process))"
  }
}
