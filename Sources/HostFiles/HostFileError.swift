package import BlockCore

/// Why a host file cannot be opened.
package enum HostFileError: Error, Equatable {
  /// open(2) failed.
  case open(Errno)
  /// A block device that is to be written has another use.
  case inUse(BlockDeviceUse)
  /// The kind or the size of the file cannot be found out.
  case inspect(Errno)
  /// Neither a regular file nor a block device.
  case notAFile
}
