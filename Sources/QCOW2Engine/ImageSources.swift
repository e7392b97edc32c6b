package import BlockCore
package import QCOW2Codec

/// All that one image is made of, opened by the caller.
package struct ImageSources: Sendable {
  /// The image file, or the block device that holds it.
  package var file: any HostFile
  /// What host transfers call the file that holds the guest's data; nil keeps it off the hit path.
  package var fileNumber: UInt8? = 0
  /// The external data file, for images that have one.
  package var dataFile: (any HostFile)?
  /// The backing image, for images that have one.
  package var backing: (any BackingLayer)?
  /// The cipher, unlocked, for encrypted images.
  package var cipher: (any SectorCipher)?

  package init(
    file: any HostFile, dataFile: (any HostFile)? = nil, backing: (any BackingLayer)? = nil,
    cipher: (any SectorCipher)? = nil
  ) {
    self.file = file
    self.dataFile = dataFile
    self.backing = backing
    self.cipher = cipher
  }
}
