/// Bounds how many requests of a queue the slow path serves at once, and with that their memory.
///
/// Requests beyond the limit wait in a list of tags, first come, first served.
struct ServingTurns {
  private let limit: Int
  private var serving = 0
  private var first = -1
  private var last = -1
  /// Whether any request has ever to wait.
  let areLimited: Bool

  /// - Parameters:
  ///   - limit: The most requests at once.
  ///   - depth: The number of tags.
  init(limit: Int, depth: Int) {
    self.limit = limit
    areLimited = limit < depth
  }

  /// Whether a request may be served now.
  var isFree: Bool { serving < limit }

  /// A request is served now.
  mutating func begin() { serving += 1 }

  /// A request that was served has ended, or pauses.
  mutating func end() { serving -= 1 }

  /// Adds a tag to those that wait.
  mutating func wait(_ tag: Int, _ tags: UnsafeMutablePointer<TagState>) {
    unsafe tags[tag].nextWaiting = -1
    if last < 0 {
      first = tag
    } else {
      unsafe tags[last].nextWaiting = Int32(truncatingIfNeeded: tag)
    }
    last = tag
  }

  /// Takes the tag whose turn it is; nil if none waits, or there is no room.
  mutating func next(_ tags: UnsafeMutablePointer<TagState>) -> Int? {
    guard isFree, first >= 0 else { return nil }
    let tag = first
    first = unsafe Int(tags[tag].nextWaiting)
    if first < 0 { last = -1 }
    return tag
  }
}
