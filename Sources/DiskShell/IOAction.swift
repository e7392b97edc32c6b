import DiskImages
import QCOW2Tools

/// A command of `qublk io`, read and checked, ready to be carried out.
enum IOAction: Sendable {
  case read(IORead)
  case write(IOWrite)
  case startRead(IORead)
  case startWrite(IOWrite)
  case drain
  case flush
  case discard(IODiscard)
  case startDiscard(IODiscard)
  case truncate(UInt64, Preallocation)
  case length
  case allocation(offset: UInt64, count: UInt64)
  case map
  case open(DiskOpening)
  case reopen(IOReopening)
  case zones
  case close
  case info
  /// Milliseconds.
  case sleep(Int)
  case breakpoint
  case help(String?)
  case quit
  /// Ends the process without closing anything.
  case abort
  case signal(Int32)
}

/// What bounds a request.
enum IOLimit {
  /// The most bytes of one request: QEMU's limit.
  static let length: UInt64 = 2_147_483_136
}

/// What is printed of a request.
struct IOPrinting: Sendable {
  /// Nothing but failures.
  var isQuiet = false
  /// Numbers with commas.
  var isForMachines = false
}

/// A read.
struct IORead: Sendable {
  /// What failures call it.
  var name: String
  var offset: UInt64
  var count: UInt64
  /// What every byte in `verified` must be.
  var pattern: UInt8?
  /// Relative to `offset`.
  var verified: Range<UInt64> = 0..<0
  var dumps = false
  /// The VM state area, not the disk.
  var isState = false
  /// Not to be carried out at all.
  var isInvalid = false
  var printing = IOPrinting()
}

/// A write, or write-zeroes.
struct IOWrite: Sendable {
  /// What is written.
  enum Content: Sendable {
    case pattern(UInt8)
    /// The bytes of a file, again and again.
    case source(path: String)
    case zeroes(unmaps: Bool, allowsFallback: Bool)
  }

  /// What failures call it.
  var name: String
  var offset: UInt64
  var count: UInt64
  var content: Content
  var isCompressed = false
  var isFUA = false
  /// The VM state area, not the disk.
  var isState = false
  /// Not to be carried out at all.
  var isInvalid = false
  var printing = IOPrinting()
}

/// What `reopen` changes; the rest stays as it is.
struct IOReopening: Sendable {
  var isReadOnly: Bool?
  var cache: String?
  var lists: [String] = []
}

/// A discard.
struct IODiscard: Sendable {
  var offset: UInt64
  var count: UInt64
  var printing = IOPrinting()
}
