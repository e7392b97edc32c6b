package import BlockCore
import Glibc

/// The system's text for an error number with the number's name: "No such file … (ENOENT)".
package func errorText(_ errno: Errno) -> String {
  guard let text = unsafe strerror(errno.code) else { return errorName(errno) }
  return unsafe "\(String(cString: text)) (\(errorName(errno)))"
}

private func errorName(_ errno: Errno) -> String {
  switch errno.code {
  case EPERM: "EPERM"
  case ENOENT: "ENOENT"
  case EIO: "EIO"
  case ENXIO: "ENXIO"
  case EAGAIN: "EAGAIN"
  case ENOMEM: "ENOMEM"
  case EACCES: "EACCES"
  case EBUSY: "EBUSY"
  case EEXIST: "EEXIST"
  case ENOTDIR: "ENOTDIR"
  case EISDIR: "EISDIR"
  case EINVAL: "EINVAL"
  case EFBIG: "EFBIG"
  case ENOSPC: "ENOSPC"
  case EROFS: "EROFS"
  case ENAMETOOLONG: "ENAMETOOLONG"
  case ELOOP: "ELOOP"
  case EOPNOTSUPP: "EOPNOTSUPP"
  case EDQUOT: "EDQUOT"
  default: "errno \(errno.code)"
  }
}
