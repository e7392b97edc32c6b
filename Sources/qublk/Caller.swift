import Glibc

/// Who called the command.
enum Caller {
  /// The users whose images the caller is taken to trust: the effective user and, where that is root, the user who
  /// became root by sudo or pkexec.
  ///
  /// The variables are believed: whoever sets them for a command of root's may as well give it other options.
  static var users: Set<UInt32> {
    users(effective: geteuid()) { name in unsafe getenv(name).map { unsafe String(cString: $0) } }
  }

  /// The same for an effective user and an environment.
  static func users(effective: UInt32, _ variable: (String) -> String?) -> Set<UInt32> {
    guard effective == 0 else { return [effective] }
    let callers = ["SUDO_UID", "PKEXEC_UID"].compactMap { variable($0).flatMap { UInt32($0) } }
    return Set(callers + [effective])
  }
}
