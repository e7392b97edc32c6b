import CPlatform
import Glibc

extension DeviceUse {
  /// Like ``find(_:reads:)``, but gives an opener two seconds to close the disk.
  ///
  /// `reads`: see there.
  package static func findLasting(_ device: DeviceName, reads: Bool = true) -> DeviceUse? {
    findLasting { find(device, reads: reads) }
  }

  /// The same with a search of the caller's: who uses the disk at a moment.
  static func findLasting(by find: () -> DeviceUse?) -> DeviceUse? {
    let deadline = Deadline(seconds: 2)
    while true {
      let use = find()
      guard let use, use.mayPass, !deadline.hasPassed else { return use }
      usleep(20_000)
    }
  }

  /// What uses a disk that nobody serves, as far as it shows without a request to it.
  ///
  /// A read would wait for a server.
  package static func findUnserved(_ device: DeviceName) -> DeviceUse? {
    let search = UserSearch(device)
    if let use = search.claimant() ?? search.opener() { return use }
    return claim(device.path) == EBUSY ? .claimed : nil
  }

  /// What uses the disk or one of its partitions now; nil if nothing does.
  ///
  /// Three questions, since no single one has the whole answer:
  /// 1. The kernel is asked for a claim of our own (O_EXCL). A mount, swap space or device mapper in
  ///    whatever namespace refuses it. A partition's claim counts as one of the disk.
  /// 2. Users that claim nothing are looked for by name: processes, loop devices, targets.
  /// 3. ``OpenerProbe`` finds any other opener, without its name.
  ///
  /// A dead device has no disk any more, only users that have not noticed: 2 finds those.
  ///
  /// Without `reads`, 3 is not asked: a daemon must not read from its own device if that outlives it. A read
  /// that is in flight when the daemon dies waits for the next daemon, and keeps the character device open, for
  /// whose end the next daemon waits.
  static func find(_ device: DeviceName, reads: Bool = true) -> DeviceUse? {
    let search = UserSearch(device)
    switch claim(device.path) {
    case 0:
      if let use = search.opener() { return use }
      if !reads { return nil }
      // What cannot be found out is no answer, either.
      return OpenerProbe(path: device.path).findsOthers(within: 2) == false ? nil : .held
    // The device is dead, or its node is gone.
    case ENOENT, ENXIO, ENODEV: return search.claimant() ?? search.opener()
    // Refused, or nothing is known for want of memory or rights: better in use than pulled away.
    default: return search.claimant() ?? search.opener() ?? .claimed
    }
  }

  /// Claims the disk for a moment; 0, or the errno with which that was refused.
  private static func claim(_ path: String) -> Int32 {
    while true {
      let descriptor = unsafe qublk_open_file(path, O_RDONLY | O_EXCL | O_NONBLOCK, 0)
      if descriptor >= 0 {
        close(descriptor)
        return 0
      }
      if errno != EINTR { return errno }
    }
  }
}
