/// One host transfer of a planned request.
public struct HostTransfer: Sendable {
  /// What to do for the part.
  public enum Kind: UInt8, Sendable {
    /// Transfer with a host file.
    case file
    /// A READ part that is zeros: no host I/O needed.
    case zeroes
  }

  /// How many host files can have a number.
  public static var fileNumbers: Int { Int(UInt8.max) + 1 }

  public var kind: Kind
  /// Which host file: 0 for the image, else what the target numbers it as; meaningless for
  /// ``Kind/zeroes``.
  public var file: UInt8
  /// The number of bytes.
  public var length: UInt32
  /// The first byte of the request's data that this part covers.
  public var dataOffset: UInt32
  /// Where in the host file; meaningless for ``Kind/zeroes``.
  public var hostOffset: HostOffset

  @inlinable public init(
    kind: Kind, file: UInt8 = 0, length: UInt32, dataOffset: UInt32, hostOffset: HostOffset
  ) {
    self.kind = kind
    self.file = file
    self.length = length
    self.dataOffset = dataOffset
    self.hostOffset = hostOffset
  }
}

/// How the hit path answers a request.
public enum PlanResult: Sendable {
  /// The first `count` entries of the plan are all there is to do; then call `finish`.
  case transfers(count: Int)
  /// The request needs the slow path: call `serve`. `finish` must not be called.
  case needsService
}

/// What is left of a planned request after its transfers.
public enum FinishResult: Sendable {
  /// Nothing: the request has ended.
  case done
  /// The data is in place, but what leads to it is not: call `serve` with the same request, which
  /// then only does that. The request is still in flight.
  case needsService
}

/// How the slow path ended.
public enum ServiceResult: Sendable, Equatable {
  /// Done in full.
  case done
  /// Not done, or only in part; the errno is for the guest.
  case failed(Errno)
  /// Nothing is lost or half done, but the data must be decrypted or decompressed: call `serve`
  /// again with plain memory in place of the registered buffer.
  case needsMemory

  /// Nil when done in full.
  public var errno: Errno? {
    switch self {
    case .done: nil
    case .failed(let errno): errno
    case .needsMemory: .notSupported
    }
  }
}

/// What a queue worker serves: the engine behind a device, as the data plane sees it.
///
/// Each call says in which ``RequestSlot`` the request is, so that the target can tell which are in
/// flight.
public protocol BlockTarget: AnyObject, Sendable {
  /// The size of the device in bytes.
  var size: UInt64 { get }

  /// Hit path: maps `request` without allocation, I/O or waiting.
  ///
  /// `plan` has room for one transfer at least; a request that needs more than there is room for needs
  /// service. On `.transfers` the request counts as in flight until ``finish(at:failed:)``; the
  /// caller carries out all transfers (in any order, whole) in between.
  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult

  /// Ends a request that ``plan(_:at:into:)`` answered with transfers.
  ///
  /// `failed` says that some transfer was not carried out in full; such a request is always
  /// ``FinishResult/done``.
  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult

  /// Slow path: carries out the whole request, suspending as needed.
  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult
}
