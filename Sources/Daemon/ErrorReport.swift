package import BlockCore
import CPlatform
package import DiskImages
package import Ublk

/// Whatever ends a command.
///
/// Made where it happens, put into words here alone.
package enum CommandError: Error {
  /// What was done with a file.
  package enum FileStep { case open, create, write, stat }

  case file(String, FileStep, Errno)
  case disk(DiskImageError)
  case secret(SecretError)
  case optionText(OptionTextError)
  case directNotSupported(String)
  case device(UblkError)
  /// A step that makes the process fit to serve a device failed.
  case hygiene(HygieneStep, Errno)
  case flusherNotSet
  /// A part of the sandbox, which the kernel has, was refused.
  case sandbox(Sandbox.Part, Errno)
  case stateTaken(String)
  case controlSocket(String, Errno)
  case fork(Errno)
  /// A limit that is too low for serving.
  case shortage(Shortage)
  /// A file of a device below /run/qublk cannot be written.
  case state(String, Errno)
  /// A device of qublk whose files in /run/qublk are lost. Its daemon did not end.
  case stillServed(DeviceName, process: Int32)
  case startSilent(status: Int32)
  case startFailed(String)
  case startAbandoned
  /// A worker's ring cannot be made.
  case ring(Errno)
  case output(Errno)
  /// The device is made, but its path could not be printed.
  case untold(Errno)
  case noNode(DeviceName)
  case noDevice(DeviceName)
  /// The kernel has the device, but no daemon of qublk serves it.
  case noDaemon(DeviceName)
  /// The daemon speaks another control protocol. 0 for a process that is not known.
  case otherVersion(DeviceName, process: Int32)
  case busy(DeviceName, DeviceUse)
  /// The daemon is gone, but somebody has not noticed.
  case deadInUse(DeviceName, DeviceUse)
  /// Deleted, but the driver does not forget it while somebody has it open.
  case stillHeld(DeviceName)
  case foreign(DeviceName, server: Int32)
  /// With what the daemon knows about it.
  case lastFlush(DeviceName, Errno, trouble: String?)
  case daemonRefused(DeviceName, String)
  case daemonLost(DeviceName)
  /// The daemon does not answer. 0 for a process that is not known.
  case daemonSilent(DeviceName, Int32)
  /// Another command has detached it.
  case goneMeanwhile(DeviceName)
  case leftBehind(DeviceName)
  case notStopped([CommandError])
  /// A device is not given a new daemon.
  case recoveryRefused(DeviceName, RecoveryRefusal)
  /// A device waits for a new daemon, and something would be lost without it.
  case waitsForRecovery(DeviceName, DeviceUse?)
  /// An image belongs to a device that waits for a new daemon.
  case imageWaits(String, DeviceName)
  /// A queue was lost, and the device with it.
  case lost(DeviceName, UblkError)

  /// What makes a process fit to serve.
  package enum HygieneStep { case signals, mountNamespace, flusher, events, timeLimit, coreDump }
}

extension CommandError {
  /// The message after "qublk: ", in the form of docs/design.md, section 9.
  package var text: String {
    switch self {
    case .file(let path, let step, let errno): "\(path): cannot \(step.verb): \(errno)"
    case .disk(let error): error.message
    case .secret(let error): error.message
    case .optionText(let error): error.message
    case .directNotSupported(let path):
      "\(path): the file system has no direct I/O: add it with --cache writeback"
    case .device(let error): error.text
    case .hygiene(let step, let errno): "\(step.text): \(errno)"
    case .flusherNotSet:
      "the kernel did not keep PR_SET_IO_FLUSHER: it needs Linux 5.6 and CAP_SYS_RESOURCE"
    case .sandbox(let part, let errno):
      "cannot enter the sandbox: \(part.text): \(errno): add it with --sandbox off to serve without"
    case .stateTaken(let path): "\(path): in use by another daemon"
    case .controlSocket(let path, let errno): "\(path): cannot listen: \(errno)"
    case .fork(let errno): "cannot start the daemon: \(errno)\(errno.threadHint)"
    case .shortage(let shortage): shortage.text
    case .state(let path, let errno):
      "\(path): cannot write the files of a device: \(errno)\(Self.wayOut(ofStateError: errno))"
    case .stillServed(let device, let process):
      "\(device.disk): its files in \(StateDirectory.root) are lost, and process \(process) still "
        + "serves it: its log says why"
    case .startSilent(let status): "the daemon ended before it was ready: \(Self.ending(status))"
    case .startFailed(let text): text
    case .startAbandoned: "nobody waits for the device any more: it was removed again"
    case .ring(let errno): "cannot set up io_uring: \(errno)"
    case .output(let errno): "standard output: cannot write: \(errno)"
    case .untold(let errno):
      "standard output: cannot write: \(errno): the device is there, \"qublk list\" shows it"
    case .noNode(let device): "\(device.path): the node did not appear"
    case .noDevice(let device): "\(device.disk): no such device"
    case .noDaemon(let device):
      "\(device.disk): no daemon of qublk serves it: \"qublk list\" shows its state"
    case .otherVersion(let device, let process):
      "\(device.disk): its daemon is of another version of qublk than this one"
        + (process > 0 ? ": end it with \"kill \(process)\" once nobody uses the device" : "")
    case .busy(let device, let use):
      "\(device.path): in use: \(use.text): stop that first, or add --force"
    case .deadInUse(let device, let use):
      "\(device.path): its daemon is gone, but it is \(use.text): \(use.wayOut), then delete it again"
    case .stillHeld(let device):
      "\(device.disk): deleted, but someone who could not be found still has it open: its number is "
        + "free when that ends"
    case .foreign(let device, let server):
      "\(device.disk): served by process \(server), which is not qublk: add --force to delete it"
    case .lastFlush(let device, let errno, let trouble):
      "\(device.path): cannot write back what is cached: \(errno): "
        + (trouble.map { $0 + ": " } ?? "") + "add --force to lose it"
    // The daemon's own words name the device, where they are about it.
    case .daemonRefused(let device, let text):
      text.hasPrefix(device.path) ? text : "\(device.disk): \(text)"
    case .daemonLost(let device): "\(device.disk): the daemon ended without an answer"
    case .daemonSilent(let device, let process): Self.silence(device, process)
    case .goneMeanwhile(let device):
      "\(device.disk): no such device any more: another command has detached it"
    case .leftBehind(let device): "\(device.disk): the device is still there after it was deleted"
    case .lost(let device, let error):
      "\(device.path): \(error.text): the device was stopped, and requests have failed"
    case .recoveryRefused(let device, let refusal):
      "\(device.disk): cannot be recovered: \(refusal.text)"
    case .waitsForRecovery(let device, let use):
      "\(device.disk): its daemon is gone, and "
        + (use.map { "it is \($0.text), so requests wait" } ?? "what it had not written yet waits")
        + ": \"qublk recover \(device.id)\" brings it back; --force deletes it, and that is lost"
    case .imageWaits(let image, let device):
      "\(image): the image of \(device.path), which waits for a daemon: "
        + "\"qublk recover \(device.id)\", or \"qublk del \(device.id)\" first"
    case .notStopped(let errors): errors.map(\.text).joined(separator: "\nqublk: ")
    }
  }

  private static func wayOut(ofStateError errno: Errno) -> String {
    switch errno {
    case _ where errno == .fileTooBig: ": raise the limit of file size (ulimit -f)"
    case _ where errno.isNoSpace: ": make room in \(StateDirectory.root)"
    default: ""
    }
  }

  private static func silence(_ device: DeviceName, _ process: Int32) -> String {
    let state = ProcessState(of: process)
    let wayOut = state.isStopped ? ": let it go on with \"kill -CONT \(process)\"" : ""
    return
      "the daemon (process \(process)) of \(device.path) does not answer: \(state.text)\(wayOut)"
  }

  /// How a child ended, from its wait status.
  static func ending(_ status: Int32) -> String {
    let signal = qublk_wait_signal(status)
    guard signal != 0 else { return "exit status \(qublk_wait_exit(status))" }
    if signal == Int32(QUBLK_BREACH_SIGNAL) {
      return
        "killed by SIGSYS: it made a system call that its sandbox forbids, which the kernel's log names"
    }
    guard let name = unsafe qublk_signal_name(signal) else { return "signal \(signal)" }
    return unsafe "killed by SIG\(String(cString: name))"
  }
}

extension CommandError.FileStep {
  fileprivate var verb: String {
    switch self {
    case .open: "open"
    case .create: "create"
    case .write: "write"
    case .stat: "read its status"
    }
  }
}

extension CommandError.HygieneStep {
  fileprivate var text: String {
    switch self {
    case .signals: "cannot take over the signals"
    case .events: "cannot make an eventfd"
    case .timeLimit:
      "cannot take away the limit of processor time (ulimit -t), at which the system would end the daemon"
    case .mountNamespace: "cannot make a mount namespace (needs CAP_SYS_ADMIN)"
    case .coreDump: "cannot forbid core dumps"
    case .flusher: "cannot set PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE)"
    }
  }
}

extension Errno {
  /// What keeps a process or a thread from being made.
  var threadHint: String {
    self == .again ? ": raise the limit of processes (ulimit -u, or pids.max of the cgroup)" : ""
  }
}
