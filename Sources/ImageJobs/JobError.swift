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
  /// The job needs a disk of another format.
  case format(needed: DiskFormat)
}

extension JobError {
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
    case .format(let needed): "the disk is not a \(needed.rawValue) image"
    }
  }
}
