package import BlockCore
package import QCOW2Codec
package import QCOW2Format

/// Why a tool could not do its work.
///
/// The text is made by ``message``; the file's name is put in front of it by whoever prints.
package enum ToolError: Error, Equatable, Sendable {
  /// A system call on the image file failed.
  case host(HostOperation, errno: Errno)
  /// Another process uses the image; `reason` is the text of whoever found the lock.
  case inUse(reason: String)
  /// A block device that is to be written is mounted, swap space or claimed by somebody else.
  case deviceInUse
  /// The path names a FIFO, a socket, a directory or a character device.
  case notRegularFile
  /// The image is not what the format allows.
  case format(FormatError)
  /// The block device is too small for what is to be created.
  case deviceTooSmall(needed: UInt64, available: UInt64)
  /// The image cannot be checked or described: a table reaches a limit of this program.
  case limit(LimitName, found: UInt64, allowed: UInt64)
  /// The image has damage that rebuilding refcounts cannot make good; it was not touched.
  case notOnlyRefcounts(CheckFinding)
  /// The name of a file cannot be used.
  case name(String)
  /// The backing file of an image that is to be created cannot be used.
  case backing(name: String, problem: String)
  /// The data file of an image that is to be created cannot be made.
  case dataFile(name: String, problem: String)
  /// The LUKS header of an image that is to be created cannot be made.
  case luks(LUKSError)
  /// An option of `create` cannot be used.
  case option(OptionError)
  /// An option of an image cannot be changed.
  case amend(AmendError)
  /// The image cannot be compacted.
  case compact(CompactError)
  /// Nothing of the image can be read.
  case salvage(SalvageError)
  /// The caller did not want it any more; the image is whole.
  case cancelled
}

/// What was being done to the image file.
package enum HostOperation: Equatable, Sendable {
  case open, create, lock, stat, read(at: HostOffset), write(at: HostOffset), setLength(UInt64)
  case allocate(UInt64), sync, close
}

/// A limit of this program that an image can reach.
package enum LimitName: String, Equatable, Sendable {
  case clusters = "the number of host clusters"
  case refcountTableEntries = "the number of refcount table entries"
}

extension ToolError {
  /// What failed and why, in the form of an error line after the object's name.
  package var message: String {
    switch self {
    case .host(let operation, let errno): "\(operation.text): \(errno)"
    case .inUse(let reason): reason
    case .deviceInUse:
      "block device is in use: mounted, swap space, part of another device, or open exclusively"
    case .notRegularFile: "cannot open: neither a regular file nor a block device"
    case .format(let error): error.message
    case .deviceTooSmall(let needed, let available):
      "the block device has \(available) bytes, the image needs \(needed)"
    case .limit(let name, let found, let allowed):
      "\(name.rawValue) is \(found), supported is at most \(allowed)"
    case .notOnlyRefcounts(let finding):
      "not only refcounts are wrong, so they are not rebuilt at once: \(finding.message): "
        + "repair the image with \"qublk check -r all\", or open it read-only"
    case .name(let problem): problem
    case .backing(let name, let problem): "backing file \"\(name)\": \(problem)"
    case .dataFile(let name, let problem): "data file \"\(name)\": \(problem)"
    case .luks(let error): error.text
    case .option(let error): error.message
    case .amend(let error): error.message
    case .compact(let error): error.message
    case .salvage(let error): error.message
    case .cancelled: "cancelled"
    }
  }
}

extension HostOperation {
  fileprivate var text: String {
    switch self {
    case .open: "cannot open"
    case .create: "cannot create"
    case .lock: "cannot lock"
    case .stat: "cannot read the file's attributes"
    case .read(let offset): "host read at \(hex(offset.bytes))"
    case .write(let offset): "host write at \(hex(offset.bytes))"
    case .setLength(let length): "cannot set the file's length to \(length) bytes"
    case .allocate(let length): "cannot allocate \(length) bytes"
    case .sync: "fsync"
    case .close: "close"
    }
  }
}
