import BlockCore

/// Who is changing the mapping of which guest clusters: writes that allocate, discards, zeroing.
///
/// A request holds its range from before it reads the old mapping until the new one is published;
/// one that overlaps waits, then looks at the mapping from scratch. A range never spans two groups
/// of `2^groupBits` clusters, so one stripe decides. Release is in a scope exit: errors wake, too.
///
/// A write into new clusters that needs no wait may hold its range together with others: see
/// ``claim(_:_:)``.
final class InFlightRanges: @unchecked Sendable {  // why: each stripe's lock guards its lists
  /// Host clusters that were taken for a claimed range.
  struct NewClusters {
    /// The host cluster for the first guest cluster.
    var host: HostCluster
    /// Others may write into them before they are published.
    var isOpenToOthers: Bool
  }

  private struct Stripe: ~Copyable {
    var held = HeldRanges()
    var waiters = WaitList()
  }

  private static let stripeCount = 64
  private let stripes: LockedStripes<Stripe>
  private let groupBits: UInt64

  /// - Parameter groupBits: log2 of the clusters in a group: the entries of an L2 slice, or of a table.
  init(groupBits: Int) {
    self.groupBits = UInt64(groupBits)
    stripes = LockedStripes(count: Self.stripeCount, rank: .inFlight) { _ in Stripe() }
  }

  deinit { stripes.deallocate() }

  @inline(__always) private func stripe(_ range: Range<GuestCluster>) -> LockedStripe<Stripe> {
    let group = range.lowerBound.number >> groupBits
    assert(group == (range.upperBound.number - 1) >> groupBits)
    return stripes[Int(group % UInt64(Self.stripeCount))]
  }

  /// Takes the range, suspending while any overlapping one is held.
  func acquire(_ range: Range<GuestCluster>) async {
    let stripe = stripe(range)
    while true {
      let blockedAt = stripe.withLock { state -> UInt64? in
        if state.held.overlaps(range) { return state.waiters.version }
        state.held.append(HeldRanges.Element(range: range))
        return nil
      }
      guard let blockedAt else { return }
      unsafe await withUnsafeContinuation { continuation in
        let waits = stripe.withLock {
          unsafe $0.waiters.add(continuation, ifStill: blockedAt)
        }
        if !waits { unsafe continuation.resume() }
      }
    }
  }

  /// Gives the range back and wakes everyone who waits in its stripe.
  func release(_ range: Range<GuestCluster>) {
    let stripe = stripe(range)
    let waiters = unsafe stripe.withLock { state in
      let index = state.held.find(range)
      assert(index >= 0, "a range is given back that nobody holds")
      if index >= 0 { state.held.remove(at: index) }
      return unsafe state.waiters.takeAll()
    }
    unsafe waiters.forEach { unsafe $0.resume() }
  }

  /// Whether some request holds all of the range: for assertions.
  func isHeld(_ range: Range<GuestCluster>) -> Bool {
    stripe(range).withLock { $0.held.find(range) >= 0 }
  }

  // MARK: Claims, which never wait

  /// Takes the range for a write into new clusters, or joins one that covers it and is open.
  ///
  /// `take` looks at the old mapping and takes host clusters; it is called, under the stripe's lock,
  /// when nobody else holds any of the range, which is then held if it returns clusters.
  ///
  /// - Returns: the host cluster of the first guest cluster; nil if the slow path must do it.
  @inline(__always) func claim(_ range: Range<GuestCluster>, _ take: () -> NewClusters?)
    -> HostCluster?
  {
    stripe(range).withLock { state in
      if state.held.overlaps(range) {
        let index = state.held.find(range)
        return index >= 0 ? Self.join(&state.held[index], range) : nil
      }
      guard let new = take() else { return nil }
      state.held.append(
        HeldRanges.Element(range: range, host: new.host, isOpen: new.isOpenToOthers))
      return new.host
    }
  }

  private static func join(_ held: inout HeldRanges.Element, _ range: Range<GuestCluster>)
    -> HostCluster?
  {
    guard held.isOpen else { return nil }
    held.holders &+= 1
    return held.host + (range.lowerBound.number &- held.range.lowerBound.number)
  }

  /// Ends a claim; the last to leave gives the range back and wakes everyone who waits.
  ///
  /// - Returns: the first of the host clusters, for the last to leave, if nobody has published them.
  @inline(__always) func leave(_ range: Range<GuestCluster>, isPublished: Bool) -> HostCluster? {
    let stripe = stripe(range)
    var unused: HostCluster?
    let waiters = unsafe stripe.withLock { state -> [UnsafeContinuation<Void, Never>] in
      let index = state.held.find(range)
      assert(index >= 0, "a claim ends that nobody has")
      guard index >= 0 else { return unsafe [] }
      state.held[index].holders &-= 1
      if isPublished { state.held[index].isPublished = true }
      let held = state.held[index]
      if held.holders > 0 { return unsafe [] }
      if !held.isPublished { unused = held.host }
      state.held.remove(at: index)
      return unsafe state.waiters.takeAll()
    }
    if unsafe !waiters.isEmpty { unsafe waiters.forEach { unsafe $0.resume() } }
    return unused
  }
}

/// The held ranges of a stripe, in no order; they never overlap.
@safe
private struct HeldRanges: ~Copyable {
  struct Element {
    var range: Range<GuestCluster>
    /// The first host cluster of a claimed range; 0 for others.
    var host = HostCluster(0)
    var holders: UInt32 = 1
    var isOpen = false
    /// Some holder has published the clusters.
    var isPublished = false
  }

  private var elements: UnsafeMutablePointer<Element>
  private var capacity = 4
  private var count = 0

  init() { unsafe elements = .allocate(capacity: capacity) }

  deinit { unsafe elements.deallocate() }

  subscript(index: Int) -> Element {
    @inline(__always) get { unsafe elements[index] }
    @inline(__always) set { unsafe elements[index] = newValue }
  }

  /// The index of the range that has all of `clusters` in it; -1 if there is none.
  @inline(__always) func find(_ clusters: Range<GuestCluster>) -> Int {
    var index = 0
    while index < count {
      let range = unsafe elements[index].range
      if range.lowerBound <= clusters.lowerBound && clusters.upperBound <= range.upperBound {
        return index
      }
      index &+= 1
    }
    return -1
  }

  @inline(__always) func overlaps(_ clusters: Range<GuestCluster>) -> Bool {
    var index = 0
    while index < count {
      let range = unsafe elements[index].range
      if range.lowerBound < clusters.upperBound && clusters.lowerBound < range.upperBound {
        return true
      }
      index &+= 1
    }
    return false
  }

  @inline(__always) mutating func append(_ element: Element) {
    if count == capacity { grow() }
    unsafe (elements + count).initialize(to: element)
    count &+= 1
  }

  private mutating func grow() {
    let larger = UnsafeMutablePointer<Element>.allocate(capacity: capacity * 2)
    unsafe larger.update(from: elements, count: count)
    unsafe elements.deallocate()
    unsafe elements = unsafe larger
    capacity *= 2
  }

  @inline(__always) mutating func remove(at index: Int) {
    count &-= 1
    unsafe elements[index] = unsafe elements[count]
  }
}
