import BlockCore
import Glibc
import Synchronization
package import Ublk

/// The server's way to its supervisor.
package final class SupervisorLink: OutsideStop {
  /// The socket; ends (POLLHUP) when the supervisor is gone.
  let descriptor: Int32
  /// The supervisor.
  package let process: Int32
  private let stops = Mutex(0)

  init(descriptor: Int32, process: Int32) {
    self.descriptor = descriptor
    self.process = process
  }

  deinit { close(descriptor) }

  /// Gives the supervisor the files of the image: their locks last as long as it lives.
  package func hold(_ files: [Int32]) {
    var rest = files[...]
    while !rest.isEmpty {
      let part = rest.prefix(SupervisorMessage.descriptorLimit)
      SupervisorMessage.files.send(descriptor, Array(part))
      rest = rest.dropFirst(part.count)
    }
  }

  /// Gives the supervisor the lock of the device's directory.
  package func hold(lock: Int32) { SupervisorMessage.lock.send(descriptor, [lock]) }

  /// Tells of the device.
  package func tell(_ device: DeviceName, isRecoverable: Bool) {
    SupervisorMessage.device(id: device.id, isRecoverable: isRecoverable).send(descriptor)
  }

  /// Tells that the device is served.
  package func tellServing() { SupervisorMessage.serving.send(descriptor) }

  /// Tells of a signal after which the device ends with its last user; see ``SupervisorMessage/leaving(signal:)``.
  package func tell(leaving signal: Int32) {
    SupervisorMessage.leaving(signal: signal).send(descriptor)
  }

  /// Tells why the device cannot be served again.
  package func tell(_ error: CommandError) {
    SupervisorMessage.failed(error.text, isFinal: error.isFinalForRecovery).send(descriptor)
  }

  /// One at a time.
  package func stop(ifUnused: Bool, keepsWaiting: () -> Bool) -> StopAnswer? {
    let number = stops.withLock { count in
      count += 1
      return count
    }
    let request = SupervisorMessage.stop(number: number, ifUnused: ifUnused)
    guard request.send(descriptor) else { return nil }
    while true {
      guard waitReadable(descriptor, milliseconds: 1000) else {
        if keepsWaiting() { continue }
        return .abandoned
      }
      switch SupervisorMessage.receive(descriptor) {
      case .message(.stopped(number, let errno), _): return errno == 0 ? .stopped : .refused(errno)
      case .message, .nothing: continue
      case .end: return nil
      }
    }
  }
}

extension CommandError {
  /// Whether a device cannot be recovered by trying again.
  var isFinalForRecovery: Bool {
    switch self {
    case .device(.notRecoverable), .recoveryRefused: true
    default: false
    }
  }
}
