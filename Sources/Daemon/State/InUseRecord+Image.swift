import BlockCore
import DiskImages
import Glibc
import HostFiles
import Logging

extension InUseRecord {
  /// The record of what a device serves; nil if nothing can leak there, or none can be made, which is logged.
  static func begin(_ disk: any OpenDisk, _ request: AttachRequest) -> InUseRecord? {
    guard let image = disk as? DiskImage, !request.isReadOnly else { return nil }
    do throws(Errno) {
      let record = try InUseRecord(of: subject(image, request))
      // Refcounts that were counted anew leave no leak.
      if image.rebuilt != nil { record.noteSettled() }
      return record
    } catch {
      Log.logger.warning(
        """
        \(root): cannot note that \(printable(request.path)) is in use: \(error): after a power cut its leaks \
        stay until "qublk check -r leaks"
        """)
      return nil
    }
  }

  private static func subject(_ image: DiskImage, _ request: AttachRequest) -> Subject {
    var status = stat()
    let isDevice =
      unsafe fstat(image.files[0].descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
    guard isDevice else {
      return Subject(
        path: request.path, device: image.identity.device, inode: image.identity.inode,
        identity: "")
    }
    let number = status.st_rdev
    let major = (number >> 8) & 0xfff | (number >> 32) & ~0xfff
    let minor = number & 0xff | (number >> 12) & 0xffff_ff00
    let directory = "/sys/dev/block/\(major):\(minor)"
    // A logical volume or the like; a disk; a partition of one.
    let names = ["dm/uuid", "wwid", "device/wwid"].map { "\(directory)/\($0)" }
    let identity = names.lazy.map(smallFile).first { !$0.isEmpty } ?? partition(in: directory)
    return Subject(
      path: request.disk.path, device: image.identity.device, inode: image.identity.inode,
      identity: String(identity.prefix { $0 != "\n" }))
  }

  private static func partition(in directory: String) -> String {
    let number = smallFile("\(directory)/partition").prefix { $0 != "\n" }
    let disk = smallFile("\(directory)/../wwid").prefix { $0 != "\n" }
    return number.isEmpty || disk.isEmpty ? "" : "\(disk), partition \(number)"
  }
}
