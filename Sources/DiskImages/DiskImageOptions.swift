package import BlockCore
package import HostFiles
package import QCOW2Engine

/// How an image is opened with everything that it refers to.
package struct DiskImageOptions: Sendable {
  /// Whether other processes are kept from changing what is open.
  package enum Locks: Sendable {
    /// As QEMU does: the image and its data file for writing or reading, backing files for reading.
    case qemu
    /// Not at all (`-U`); for reading only.
    case none
    /// Not at all, for reading and writing. Some hosts have file systems without locks. The user must keep
    /// other programs away.
    case ignored
  }

  /// The ways in which an image can be encrypted; the raw value is QEMU's word.
  package enum Encryption: String, Sendable {
    case aes, luks
  }

  /// The path of the image, as the user wrote it; a plain path, whatever it looks like.
  package var path: String
  /// What messages call the image.
  package var name: String
  /// How the image is served; backing layers have the same workers, and together as much cache.
  package var engine = ImageOptions()
  /// How the data of every file of the chain travels.
  package var mode = HostFileMode.direct
  /// The largest offset alignment that transfers keep to, in bytes: 512 for qcow2, whose metadata is
  /// written by such sectors; the block size for raw disks.
  package var granularity = 512
  package var locks = Locks.qemu
  /// Whether writes that are nothing but zeros are looked for.
  package var detectZeroes = DetectZeroes.off
  /// Where failures of the engines and their files are reported; nil if nobody wants to know.
  package var events: ImageEvents?
  /// The formats of the backing file, of its backing file, and so on, in place of what the images say;
  /// below the end of the list, the images decide.
  package var backingFormats: [BackingFormat] = []
  /// The paths of backing files by the layer above, 0 for the image, in place of what the image names;
  /// relative ones count from the current directory.
  package var backingPaths: [Int: String] = [:]
  package var backingPolicy = BackingPolicy.any
  /// The path of the external data file of the image, in place of the one that the image names.
  package var dataFile: String?
  /// The directory that the relative names of data files start from: an absolute path.
  ///
  /// An error is thrown where an image has such a name, and nowhere else. Nil stands for the process's
  /// current directory at the time of opening.
  package var currentDirectory: Result<String, Errno>?
  /// What the engines are given in place of a file of the chain: for tests and fault injection.
  package var engineFile: @Sendable (RingHostFile) -> any HostFile = { $0 }
  /// All transfers go to what ``engineFile`` gives, none past it on the hit path: for tests.
  package var keepsEngineFiles = false
  /// Files that are open and locked already; nil if there are none.
  package var held: HeldFiles?
  /// What the header of the image itself is read from in place of its file, before there is an engine.
  var headerFile: @Sendable (RingHostFile) -> any HostFile = { $0 }
  /// The passphrases; an attempt to open the image uses them up, also if it fails.
  package var secrets = LayerSecrets()
  /// How the image must be encrypted; nil if it may say so itself.
  package var encryption: Encryption?

  /// The backing file that is opened for writing beside the image; for ``DiskPair/open(_:)`` alone.
  package var writableBase: WritableBase?
  /// Backing files are not opened, and nothing may be read that the image does not have itself.
  package var ignoresBacking = false
  /// Passphrases that no layer takes stay, for what is opened next, and are no error.
  package var keepsSecrets = false
  /// The image that is to lie above this one: it may be no part of the chain.
  var imageAbove: FileKey?

  /// Nothing is written; also set where an internal snapshot is served.
  package var readOnly: Bool {
    get { engine.readOnly || engine.snapshot != nil }
    set { engine.readOnly = newValue }
  }

  package init(path: String, name: String? = nil, readOnly: Bool = false) {
    self.path = path
    self.name = name ?? path
    engine.readOnly = readOnly
  }

  /// Makes the paths independent of the current directory, as a daemon needs them.
  package mutating func makePathsAbsolute() throws(Errno) {
    // It may be deleted or out of reach, which is nothing to those whose paths are absolute.
    do throws(Errno) { currentDirectory = .success(try FilePath.currentDirectory()) } catch {
      currentDirectory = .failure(error)
    }
    path = try FilePath.absolute(path)
    dataFile = if let dataFile { try FilePath.absolute(dataFile) } else { nil }
  }
}
