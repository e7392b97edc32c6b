import BlockCore
import Synchronization

/// The backing file in force, which a job may replace while no request is in flight.
///
/// Reading takes no lock and no reference count. ``replace(with:)`` is called at a shut gate, and whoever
/// asks for the layer has a stamp, or has shut the gate: so nobody uses a layer that is replaced, and
/// requests that come later see the new one.
@safe
final class BackingSlot: @unchecked Sendable {  // why: an atomic pointer to what the slot owns
  /// A layer behind one word.
  private final class Mount: Sendable {
    let layer: any BackingLayer
    init(_ layer: any BackingLayer) { self.layer = layer }
  }

  private let current: Atomic<UnsafeMutableRawPointer?>

  init(_ layer: (any BackingLayer)?) { unsafe current = Atomic(Self.mount(layer)) }

  deinit { _ = unsafe Self.unmount(current.load(ordering: .acquiring)) }

  private static func mount(_ layer: (any BackingLayer)?) -> UnsafeMutableRawPointer? {
    unsafe layer.map { unsafe Unmanaged.passRetained(Mount($0)).toOpaque() }
  }

  private static func unmount(_ mount: UnsafeMutableRawPointer?) -> (any BackingLayer)? {
    unsafe mount.map { unsafe Unmanaged<Mount>.fromOpaque($0).takeRetainedValue().layer }
  }

  /// There is no backing file.
  @inline(__always) var isEmpty: Bool { unsafe current.load(ordering: .acquiring) == nil }

  /// The layer; nil if there is no backing file.
  var layer: (any BackingLayer)? {
    YieldPoint.backing.pass()
    return unsafe current.load(ordering: .acquiring).map {
      unsafe Unmanaged<Mount>.fromOpaque($0).takeUnretainedValue().layer
    }
  }

  /// Has the layer map a range: see ``BackingLayer/plan(_:_:into:)``; 0 if there is no layer.
  @inline(__always) func plan(
    _ offset: GuestOffset, _ length: UInt64, into builder: inout PlanBuilder
  ) -> UInt64 {
    YieldPoint.backing.pass()
    guard let mount = unsafe current.load(ordering: .acquiring) else { return 0 }
    return unsafe Unmanaged<Mount>.fromOpaque(mount)._withUnsafeGuaranteedRef {
      $0.layer.plan(offset, length, into: &builder)
    }
  }

  /// Puts another layer in its place, or none.
  ///
  /// - Returns: the layer that was there: its files may be closed.
  func replace(with layer: (any BackingLayer)?) -> (any BackingLayer)? {
    YieldPoint.backing.pass()
    return unsafe Self.unmount(
      current.exchange(Self.mount(layer), ordering: .acquiringAndReleasing))
  }
}
