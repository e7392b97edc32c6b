import CPlatform
import Glibc
import ImageJobs

/// The daemon's side of one connection; never waits for the client.
///
/// A client has some seconds to send its request, and as long to take each piece that it is sent: one
/// that does not is let go of. What began for it goes on, but for a job, which is cancelled.
final class ControlConnection {
  /// The most bytes of a request, with its newline.
  static let requestLimit = 64 << 10
  /// A client hears something this often, in seconds.
  private static let interval = 1.0

  enum State: Equatable {
    /// The request has not come whole.
    case reading
    /// The request was handed on; ``ControlConnection/reply(_:)``, or a job's end, is to come.
    case working
    /// The reply is on its way.
    case writing
    case ended
  }

  private(set) var state = State.reading
  private let descriptor: Int32
  /// How long the client may take over its request, and again over taking what it is sent.
  private let seconds: Double
  /// When the request must be whole, or what was sent taken.
  private var deadline: Deadline
  private var input: [UInt8] = []
  private var output: [UInt8] = []
  private var written = 0
  private var nextEvent = Deadline(seconds: interval)
  /// What the client has asked for and is told of.
  private var job: LiveJob?
  /// The client of a job may still send that it is not wanted any more.
  private var takesMore = true

  init(descriptor: Int32, seconds: Double) {
    self.descriptor = descriptor
    self.seconds = seconds
    deadline = Deadline(seconds: seconds)
  }

  deinit { close(descriptor) }

  /// Something was sent that the client has not taken.
  private var hasOutput: Bool { written < output.count }

  /// What to wait for; while a request is worked on, nothing but the client's end, and its word that a job is
  /// not wanted any more.
  var pollEntry: pollfd {
    let events: Int32 =
      switch state {
      case .reading: POLLIN
      case .writing: POLLOUT
      case .working: hasOutput ? POLLOUT : job != nil && takesMore ? POLLIN : 0
      case .ended: 0
      }
    return pollfd(fd: descriptor, events: Int16(events), revents: 0)
  }

  /// The milliseconds after which ``check()`` has something to do.
  var milliseconds: Int32 {
    switch state {
    case .reading, .writing: deadline.milliseconds
    case .working: hasOutput ? deadline.milliseconds : nextEvent.milliseconds
    case .ended: 0
    }
  }

  // MARK: The request

  /// Takes what the client has sent; refuses what is no request.
  ///
  /// - Returns: The request, once it is whole.
  func takeInput() -> ControlRequest? {
    var chunk = [UInt8](repeating: 0, count: 4096)
    let count = unsafe read(descriptor, &chunk, chunk.count)
    if count < 0, errno == EAGAIN || errno == EINTR { return nil }
    let newline = UInt8(ascii: "\n")
    // Only what is new is searched: a client may send byte by byte.
    let end = count > 0 ? chunk[..<count].firstIndex(of: newline).map { input.count + $0 } : nil
    if count > 0 { input += chunk[..<count] }
    guard let end, end < Self.requestLimit else {
      if count <= 0 { state = .ended }
      if input.count >= Self.requestLimit {
        refuse(ControlError(.malformed, "a request has at most \(Self.requestLimit) bytes"))
      }
      return nil
    }
    // A client that has given up, since the daemon stood still, has told its user so.
    guard hasClient else {
      state = .ended
      return nil
    }
    do throws(ControlError) {
      let request = try ControlRequest(parsing: input[..<end])
      input.removeFirst(end + 1)
      state = .working
      return request
    } catch {
      refuse(error)
      return nil
    }
  }

  /// Takes what the client of a job has sent behind its request: the job is cancelled if it says so.
  func takeCancellation() {
    var chunk = [UInt8](repeating: 0, count: 4096)
    let count = unsafe recv(descriptor, &chunk, chunk.count, Int32(MSG_DONTWAIT))
    if count < 0, errno == EAGAIN || errno == EINTR { return }
    // The client has closed its sending half, and still gets its answer.
    if count <= 0 { takesMore = false }
    if count > 0 { input += chunk[..<count] }
    readCancellation()
  }

  private func readCancellation() {
    guard let job, takesMore else { return }
    if let end = input.firstIndex(of: UInt8(ascii: "\n")) {
      if ControlRequest.cancels(input[..<end]) { job.cancellation.cancel() }
      takesMore = false
    } else if input.count >= Self.requestLimit {
      takesMore = false
    }
    if !takesMore { input = [] }
  }

  private func refuse(_ error: ControlError) {
    state = .working
    reply(.error(error))
  }

  /// Whether the client is still there.
  var hasClient: Bool {
    guard state != .ended else { return false }
    var entry = pollfd(fd: descriptor, events: 0, revents: 0)
    return unsafe poll(&entry, 1, 0) <= 0
  }

  // MARK: Events and reply

  /// Answers; the connection ends when the client has taken all of it, or has taken too long.
  func reply(_ message: ControlMessage) {
    guard state == .working else { return }
    state = .writing
    put([message])
    sendMore()
  }

  /// From now on tells the client of a job, to its end.
  func follow(_ job: LiveJob) {
    self.job = job
    readCancellation()
    // The client may have gone meanwhile, or the job come to its end.
    if state == .working { check() } else { job.cancellation.cancel() }
  }

  /// Adds messages to what is on its way; the client's time for all of it begins.
  private func put(_ messages: [ControlMessage]) {
    output.removeFirst(written)
    written = 0
    for message in messages { output += Array((message.line + "\n").utf8) }
    deadline = Deadline(seconds: seconds)
    nextEvent = Deadline(seconds: Self.interval)
  }

  /// Sends what the client takes now.
  func sendMore() {
    while hasOutput {
      let count = unsafe output[written...].withUnsafeBytes {
        unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
      }
      if count < 0, errno == EINTR { continue }
      if count < 0, errno == EAGAIN { return }
      guard count > 0 else { return drop() }
      written += count
    }
    if state == .writing { state = .ended }
  }

  /// Ends a connection whose time is over; sends on what a job has told, and lets a client that waits know
  /// that it is not forgotten.
  func check() {
    switch state {
    case .reading, .writing: if deadline.hasPassed { drop() }
    case .working where hasOutput: if deadline.hasPassed { drop() }
    case .working: tellNews()
    case .ended: break
    }
  }

  /// Call when everything that was sent has been taken: so no more is kept than one piece.
  private func tellNews() {
    if let job {
      let (messages, isEnd) = job.take()
      if isEnd { state = .writing }
      if !messages.isEmpty { put(messages) }
    }
    if state == .working, nextEvent.hasPassed {
      put([job.map { .progress($0.progress.snapshot) } ?? .wait])
    }
    sendMore()
  }

  /// Lets go of a client that has gone, or for another's sake.
  func drop() {
    state = .ended
    job?.cancellation.cancel()
  }
}
