import BlockCore
import CPlatform
import Glibc
import HostFiles
import JSON
import Logging
import Synchronization

/// A file that says that an image is open for writing, /var/lib/qublk/in-use/HASH; decision 0027.
///
/// The record is durable before the image can leak anything. A good close of the image removes it. A record that
/// a later session finds means that a daemon or the machine has died, and that clusters may be leaked.
///
/// The record is a hint. A record that is old, wrong or forged causes a needless look for leaks, and nothing
/// else. An image is served without a record if the directory cannot be written.
final class InUseRecord: Sendable {
  /// What ended the session that left a record.
  enum Cause: Equatable {
    case daemon, machine
  }

  /// What an image is known by.
  ///
  /// Any of these may change from one boot to the next.
  struct Subject: Equatable {
    /// The absolute path, symbolic links resolved; of a block device, as it was given.
    let path: String
    /// `st_dev` and `st_ino`.
    let device: UInt64
    let inode: UInt64
    /// What the kernel knows a block device by; empty if there is no such thing.
    let identity: String
  }

  static let root = "/var/lib/qublk/in-use"
  /// More records than this are not looked at: no machine has so many images in use.
  private static let most = 4096
  private static let mostBytes = 16 << 10

  /// Why the image may have leaks; nil if it was closed well.
  let found: Cause?
  /// The directory: it may be out of reach by path later.
  private let directory: Int32
  private let name: String
  /// The image has had its leaks returned, or has none.
  private let isSettled: Atomic<Bool>

  /// Looks for a record of an image, and makes one.
  ///
  /// - Parameters:
  ///   - subject: The image, open and locked for writing.
  ///   - root: Where records are.
  ///   - boot: Of this boot of the machine.
  /// - Throws: The errno that keeps it from being made; `found` is then lost.
  init(of subject: Subject, root: String = InUseRecord.root, boot: String = Boot.id) throws(Errno) {
    directory = try Self.open(root)
    name = Self.name(subject.path)
    var cause: Cause?
    var others: [String] = []
    for entry in directoryEntries(root).prefix(Self.most) {
      guard let record = Self.read(entry, in: directory), Self.isSame(record, subject) else {
        continue
      }
      cause = record["boot-id"]?.string == boot ? cause ?? .daemon : .machine
      if entry != name { others.append(entry) }
    }
    found = cause
    isSettled = Atomic(cause == nil)
    try Self.write(subject, boot, name, in: directory)
    // Of the same image under another path: this one stands for them.
    for other in others { unsafe unlinkat(directory, other, 0) }
  }

  deinit { close(directory) }

  /// Nothing is leaked, as far as is known.
  var isSettledNow: Bool { isSettled.load(ordering: .relaxed) }

  /// All that was leaked has been given back.
  func noteSettled() { isSettled.store(true, ordering: .relaxed) }

  /// The image has been closed: if that went well and nothing is leaked, the record goes.
  func end(isClean: Bool) {
    guard isClean, isSettled.load(ordering: .relaxed) else { return }
    unsafe unlinkat(directory, name, 0)
  }

  /// Where ``end(isClean:)`` removes the record: the directory as it is open, wherever its path leads by now.
  var place: Sandbox.Place { Sandbox.Place("/proc/self/fd/\(directory)", .removeFile) }

  /// Nothing has been done with the image: the record is as it was found.
  func withdraw() { end(isClean: true) }

  // MARK: Records

  private static func open(_ root: String) throws(Errno) -> Int32 {
    var path = ""
    for part in root.split(separator: "/") {
      path += "/" + part
      if unsafe mkdir(path, 0o700) < 0, errno != EEXIST, errno != EISDIR, errno != EROFS {
        throw Errno(errno)
      }
    }
    let descriptor = unsafe qublk_open_file(root, O_RDONLY | O_DIRECTORY, 0)
    if descriptor < 0 { throw Errno(errno) }
    return descriptor
  }

  /// FNV-1a of the path: a collision costs a hint.
  static func name(_ path: String) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in path.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    let digits = String(hash, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }

  private static func read(_ name: String, in directory: Int32) -> JSONValue? {
    let descriptor = unsafe openat(
      directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG,
      status.st_size <= mostBytes, let text = readAll(descriptor, limit: mostBytes)
    else { return nil }
    return JSONParser.parse(text)
  }

  private static func isSame(_ record: JSONValue, _ subject: Subject) -> Bool {
    if record["image"]?.string == subject.path { return true }
    if !subject.identity.isEmpty { return record["identity"]?.string == subject.identity }
    return record["image-device"]?.string == String(subject.device)
      && record["image-inode"]?.string == String(subject.inode)
  }

  private static func write(
    _ subject: Subject, _ boot: String, _ name: String, in directory: Int32
  ) throws(Errno) {
    let record = JSONValue.object([
      .init("image", .string(subject.path)),
      .init("image-device", .string(String(subject.device))),
      .init("image-inode", .string(String(subject.inode))),
      .init("identity", .string(subject.identity)),
      .init("boot-id", .string(boot)),
      .init("pid", .integer(Int64(getpid()))),
    ])
    let draft = ".new-\(getpid())"
    let flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW
    let descriptor = unsafe openat(directory, draft, flags, 0o600)
    if descriptor < 0 { throw Errno(errno) }
    defer { close(descriptor) }
    guard writeAll(descriptor, record.text + "\n"), fsync(descriptor) == 0,
      unsafe renameat(directory, draft, directory, name) == 0, fsync(directory) == 0
    else {
      let error = Errno(errno)
      unsafe unlinkat(directory, draft, 0)
      throw error
    }
  }
}
