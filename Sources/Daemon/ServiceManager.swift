import BlockCore
import CPlatform
import Glibc
import Logging

/// The service manager that started a unit of Type=notify.
///
/// The sandbox lets no socket be made, and the manager may be out of reach by then: the server connects to it
/// while it starts.
struct ServiceManager {
  private let socket: Int32

  /// Connects to the manager that the environment names; nil if there is none, or it cannot be reached, which is
  /// logged.
  static func connect() -> ServiceManager? {
    guard let address = unsafe getenv("NOTIFY_SOCKET") else { return nil }
    let socket = unsafe qublk_notify_connect(address)
    guard socket < 0 else { return ServiceManager(socket: socket) }
    warn(Errno(-socket))
    return nil
  }

  /// Tells that the device can be used, and lets go of the manager.
  func tellReady() {
    let text = Array("READY=1".utf8)
    if unsafe send(socket, text, text.count, Int32(MSG_NOSIGNAL)) < 0 { Self.warn(Errno(errno)) }
    close(socket)
  }

  private static func warn(_ error: Errno) {
    Log.logger.warning("NOTIFY_SOCKET: cannot tell that the device is ready: \(error)")
  }
}
