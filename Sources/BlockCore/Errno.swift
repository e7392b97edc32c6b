/// A Linux error number, always positive.
package struct Errno: Error, Hashable, Sendable {
  package let code: Int32

  @inlinable package init(_ code: Int32) { self.code = code }

  package static let noEntry = Errno(2)
  package static let interrupted = Errno(4)
  package static let io = Errno(5)
  package static let again = Errno(11)
  package static let noMemory = Errno(12)
  package static let accessDenied = Errno(13)
  package static let busy = Errno(16)
  package static let noDevice = Errno(19)
  package static let invalid = Errno(22)
  package static let fileTooBig = Errno(27)
  package static let noSpace = Errno(28)
  package static let readOnly = Errno(30)
  package static let notSupported = Errno(95)
  package static let timedOut = Errno(110)
}
