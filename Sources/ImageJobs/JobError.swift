package import BlockCore
package import DiskImages
package import QCOW2Engine
package import QCOW2Tools

/// Why a job has not been carried out.
package enum JobError: Error {
  /// It was not wanted any more, and has left the image whole.
  case cancelled
  /// A parameter cannot be used.
  case arguments(String)
  /// The image cannot be opened.
  case open(DiskImageError)
  /// The job met something in the bytes of the file.
  case file(ToolError)
  /// The engine failed.
  case image(ImageError)
  /// The host file of a raw disk failed.
  case raw(Errno)
  /// The job's own ring cannot be made.
  case ring(Errno)
  /// The job's own thread cannot be made.
  case thread(Errno)
  /// Bytes of a disk that is only read could not be read.
  case reading(disk: String, at: UInt64, Errno)
  /// A disk could not be written.
  case writing(disk: String, at: UInt64, Errno)
  /// A disk does not say what it has there.
  case lookingUp(disk: String, at: UInt64, ImageError)
  /// What is to be written is a file of a source, known by this path there.
  case targetIsSource(String)
  /// The disk that is to be written has fewer bytes than are copied.
  case targetTooSmall(size: UInt64, needed: UInt64)
  /// A file with VM state, known by this path, cannot be read or written.
  case vmStateFile(String, String)
  /// The device that shows the disk could not be changed.
  case device(String)
  /// The job needs a disk of another format.
  case format(needed: DiskFormat)
}

extension JobError {
  /// What messages call the disk that failed, where a job has several; nil if the error does not say.
  package var disk: String? {
    switch self {
    case .reading(let disk, _, _), .writing(let disk, _, _), .lookingUp(let disk, _, _): disk
    default: nil
    }
  }

  /// What failed and why, in the form of an error line after the object's name; ``open(_:)`` has the
  /// name in it.
  package var message: String {
    switch self {
    case .cancelled: "cancelled"
    case .arguments(let text): text
    case .open(let error): error.message
    case .file(let error): error.message
    case .image(let error): error.message
    case .raw(let errno): "\(errno)"
    case .ring(let errno): "cannot set up io_uring: \(errno)"
    case .thread(let errno): "cannot start a thread: \(errno)"
    case .reading(_, let offset, let errno): "error while reading at byte \(offset): \(errno)"
    case .writing(_, let offset, let errno): "error while writing at byte \(offset): \(errno)"
    case .lookingUp(_, _, let error): error.message
    case .targetIsSource(let path):
      "it is a file of the source, known there as \"\(path)\": give another target"
    case .targetTooSmall(let size, let needed):
      "output file is smaller than input file: it has \(size) bytes, \(needed) are needed"
    case .vmStateFile(let path, let text): "file \"\(path)\": \(text)"
    case .device(let text): text
    case .format(let needed): "the disk is not a \(needed.rawValue) image"
    }
  }
}
