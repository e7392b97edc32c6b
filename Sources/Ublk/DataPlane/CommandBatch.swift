import CUblk

/// Results on their way to the driver, many to a command.
///
/// Elements gather in one array while a turn of the loop lasts; then the array is sent, and is not
/// touched until its command has completed. Arrays are made as they are needed and kept.
@safe
struct CommandBatch: ~Copyable {
  /// An element with room for the address that copy mode needs.
  @safe
  struct Array {
    let elements: UnsafeMutableRawPointer
    var count = 0
  }

  private let capacity: Int
  /// 8 bytes, and in copy mode 8 more for the buffer's address.
  let elementBytes: Int
  private var arrays: [Array] = []
  private var free: [Int] = []
  /// The array that is being filled; -1 for none.
  private(set) var current = -1

  /// - Parameters:
  ///   - depth: The number of tags: no batch is larger.
  ///   - hasAddresses: Elements carry the address of the tag's buffer.
  init(depth: Int, hasAddresses: Bool) {
    capacity = depth
    elementBytes = hasAddresses ? 16 : 8
    arrays.reserveCapacity(16)
    free.reserveCapacity(16)
  }

  deinit { arrays.forEach { unsafe $0.elements.deallocate() } }

  /// Adds one tag; its result is meaningless in a batch that prepares tags.
  ///
  /// - Returns: Whether there was room. There is for every tag once: false means that the driver has
  ///   handed out a tag before it was given back.
  mutating func append(_ tag: Int, result: Int32, address: UInt64) -> Bool {
    if current < 0 { current = takeArray() }
    let count = arrays[current].count
    guard count < capacity else { return false }
    let place = unsafe arrays[current].elements + count * elementBytes
    let element = ublk_batch_element(
      tag: UInt16(truncatingIfNeeded: tag), buf_index: UInt16(truncatingIfNeeded: tag),
      result: result)
    unsafe place.storeBytes(of: element, as: ublk_batch_element.self)
    if elementBytes == 16 { unsafe place.storeBytes(of: address, toByteOffset: 8, as: UInt64.self) }
    arrays[current].count = count + 1
    return true
  }

  private mutating func takeArray() -> Int {
    if let index = free.popLast() { return index }
    unsafe arrays.append(
      Array(elements: .allocate(byteCount: capacity * elementBytes, alignment: 8)))
    return arrays.count - 1
  }

  /// Ends the filling; the array and its number, or nil if nothing was added.
  mutating func close() -> (index: Int, elements: UInt64, count: Int)? {
    guard current >= 0 else { return nil }
    let index = current
    current = -1
    return unsafe (
      index, UInt64(UInt(bitPattern: arrays[index].elements)), arrays[index].count
    )
  }

  /// The number of elements in an array that was sent.
  func count(_ index: Int) -> Int { arrays[index].count }

  /// One element of an array that was sent.
  func element(_ index: Int, _ place: Int) -> (tag: Int, result: Int32) {
    let element = unsafe (arrays[index].elements + place * elementBytes)
      .load(as: ublk_batch_element.self)
    return (Int(element.tag), element.result)
  }

  /// The driver is done with an array.
  mutating func release(_ index: Int) {
    arrays[index].count = 0
    free.append(index)
  }
}
