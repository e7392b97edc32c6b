/// A Linux error number, always positive.
public struct Errno: Error, Hashable, Sendable {
  public let code: Int32

  @inlinable public init(_ code: Int32) { self.code = code }

  public static let noEntry = Errno(2)
  public static let interrupted = Errno(4)
  public static let io = Errno(5)
  public static let tooBig = Errno(7)
  public static let again = Errno(11)
  public static let noMemory = Errno(12)
  public static let accessDenied = Errno(13)
  public static let busy = Errno(16)
  public static let noDevice = Errno(19)
  public static let invalid = Errno(22)
  /// EMFILE.
  public static let descriptors = Errno(24)
  public static let fileTooBig = Errno(27)
  public static let noSpace = Errno(28)
  public static let readOnly = Errno(30)
  public static let notSupported = Errno(95)
  public static let noBuffers = Errno(105)
  public static let timedOut = Errno(110)
  public static let quota = Errno(122)

  /// The host gives a file no more space: its file system is full, a quota is used up, or the file has
  /// reached a size limit (of the process, or of the file system).
  public var isNoSpace: Bool { self == .noSpace || self == .quota || self == .fileTooBig }

  /// What a guest is told: each of ``isNoSpace`` is a full disk to it.
  public var forGuest: Errno { isNoSpace ? .noSpace : self }
}
