import CCrypto
import Glibc
import Synchronization

/// The contexts of one thread's turn.
struct ContextSet: ~Copyable {
  let encryptor: CipherContext
  let decryptor: CipherContext
  /// Encrypts sector numbers for ESSIV.
  let essiv: CipherContext?
  /// Encrypts initialisation vectors for the composed XTS.
  let tweaker: CipherContext?

  init(_ suite: CipherSuite, key: Secret) throws(CipherError) {
    self = unsafe try key.withBytes { (bytes) throws(CipherError) in
      let half = suite.composesXTS ? bytes.count / 2 : bytes.count
      let dataKey = unsafe UnsafeRawBufferPointer(rebasing: bytes[..<half])
      return try unsafe ContextSet(
        encryptor: CipherContext(suite.cipher, suite.libraryMode, key: dataKey, encrypts: true),
        decryptor: CipherContext(suite.cipher, suite.libraryMode, key: dataKey, encrypts: false),
        essiv: ESSIV.context(suite, key: bytes),
        tweaker: Self.tweaker(suite, key: bytes))
    }
  }

  private init(
    encryptor: consuming CipherContext, decryptor: consuming CipherContext,
    essiv: consuming CipherContext?, tweaker: consuming CipherContext?
  ) {
    self.encryptor = encryptor
    self.decryptor = decryptor
    self.essiv = essiv
    self.tweaker = tweaker
  }

  private static func tweaker(
    _ suite: CipherSuite, key: UnsafeRawBufferPointer
  ) throws(CipherError) -> CipherContext? {
    guard suite.composesXTS else { return nil }
    let tweakKey = unsafe UnsafeRawBufferPointer(rebasing: key[(key.count / 2)...])
    return try unsafe CipherContext(suite.cipher, .ecb, key: tweakKey, encrypts: true)
  }
}

/// As many context sets as threads can use at once, each taken for the length of one call.
///
/// A thread begins to look at a place of its own, so that threads do not meet on a cache line. The
/// sets outnumber the processors; should all be taken all the same, the thread yields until one is
/// free, which is as long as a request's worth of arithmetic.
@safe final class ContextPool: @unchecked Sendable {  // why: a set is used by who marked it busy
  /// A set and its mark.
  private struct Place: ~Copyable {
    let isBusy = Atomic<Bool>(false)
    let set: ContextSet
  }

  private let memory: UnsafeMutableRawPointer
  private let count: Int
  /// Two cache lines, since processors fetch them in pairs.
  private static var stride: Int { (MemoryLayout<Place>.size + 127) & ~127 }

  init(_ suite: CipherSuite, key: Secret, count given: Int?) throws(CipherError) {
    let processors = sysconf(Int32(_SC_NPROCESSORS_ONLN))
    let wanted = given ?? min(max(4, 2 * processors), 128)
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: wanted * Self.stride, alignment: 128)
    for number in 0..<wanted {
      do throws(CipherError) {
        let set = try ContextSet(suite, key: key)
        unsafe Self.place(memory, number).initialize(to: Place(set: set))
      } catch {
        unsafe Self.free(memory, count: number)
        throw error
      }
    }
    unsafe self.memory = memory
    count = wanted
  }

  deinit { unsafe Self.free(memory, count: count) }

  /// Lends one set to `body`.
  @inline(__always) func withSet(_ body: (borrowing ContextSet) -> Void) {
    var number = Self.firstPlace() % count
    var tries = 0
    while true {
      let place = unsafe Self.place(memory, number)
      if unsafe !place.pointee.isBusy.exchange(true, ordering: .acquiring) {
        unsafe body(place.pointee.set)
        unsafe place.pointee.isBusy.store(false, ordering: .releasing)
        return
      }
      number = number + 1 == count ? 0 : number + 1
      tries += 1
      if tries % count == 0 { sched_yield() }
    }
  }

  /// A number that differs between threads and stays the same within one.
  private static func firstPlace() -> Int {
    // why &*: only a spread of the bits of an address
    let spread = UInt(pthread_self()) &* 0x9e37_79b9_7f4a_7c15
    return Int(spread >> 33)
  }

  private static func place(
    _ memory: UnsafeMutableRawPointer, _ number: Int
  ) -> UnsafeMutablePointer<Place> {
    unsafe (memory + number * stride).assumingMemoryBound(to: Place.self)
  }

  private static func free(_ memory: UnsafeMutableRawPointer, count: Int) {
    for number in 0..<count { unsafe place(memory, number).deinitialize(count: 1) }
    unsafe memory.deallocate()
  }
}
