package import BlockCore

/// Which host operation fails, how and how often.
package struct Fault: Sendable {
  package enum Kind: String, Sendable, CaseIterable {
    case read, write, zero, punch, sync, resize
    /// Storage for holes of tables.
    case allocate
  }
  /// nil counts operations of every kind.
  package var kind: Kind?
  /// The first to fail, from 1.
  package var number: Int
  package var errno: Errno
  /// All from the n-th on fail, instead of one.
  package var isPermanent = false
  /// The operation takes effect and then reports the error.
  package var takesEffect = false

  package init(
    _ kind: Kind? = nil, number: Int, errno: Errno, isPermanent: Bool = false,
    takesEffect: Bool = false
  ) {
    self.kind = kind
    self.number = number
    self.errno = errno
    self.isPermanent = isPermanent
    self.takesEffect = takesEffect
  }
}

/// A layer that makes chosen operations fail.
package final class FaultyFile: HostFile, @unchecked Sendable {  // why: one thread per simulation
  private let file: any HostFile
  /// Armed with nil, everything works and is counted.
  package var fault: Fault? { didSet { counts = [:] } }
  /// Operations since the fault was set, by kind; `nil` counts all.
  package private(set) var counts: [Fault.Kind?: Int] = [:]
  /// What failed so far.
  package private(set) var failures: [Fault.Kind] = []

  package init(_ file: any HostFile) { self.file = file }

  package var traits: HostFileTraits { file.traits }

  private func fails(_ kind: Fault.Kind) -> Fault? {
    counts[kind, default: 0] += 1
    counts[nil, default: 0] += 1
    guard let fault, fault.kind == nil || fault.kind == kind else { return nil }
    let count = counts[fault.kind, default: 0]
    guard count == fault.number || fault.isPermanent && count > fault.number else { return nil }
    failures.append(kind)
    return fault
  }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    if let fault = fails(.read) { throw fault.errno }
    try await file.read(into: buffer, at: offset)
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    let fault = fails(.write)
    if fault == nil || fault?.takesEffect == true {
      try await file.write(from: buffer, at: offset)
    }
    if let fault { throw fault.errno }
  }

  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    let fault = fails(.zero)
    if fault == nil || fault?.takesEffect == true {
      try await file.writeZeroes(at: offset, length: length)
    }
    if let fault { throw fault.errno }
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    if let fault = fails(.punch) { throw fault.errno }
    try await file.punchHole(at: offset, length: length)
  }

  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    // A failure may come after the effect.
    let fault = fails(.zero)
    if fault == nil { return await file.clear(at: offset, length: length) }
    if fault?.takesEffect == true { _ = await file.clear(at: offset, length: length) }
    return false
  }

  package func sync() async throws(Errno) {
    if let fault = fails(.sync) { throw fault.errno }
    try await file.sync()
  }

  package func length() async throws(Errno) -> UInt64 { try await file.length() }

  package func allocateHoles(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Bool {
    let fault = fails(.allocate)
    if fault == nil || fault?.takesEffect == true {
      let isDone = try await file.allocateHoles(at: offset, length: length)
      if fault == nil { return isDone }
    }
    if let fault { throw fault.errno }
    return true
  }

  package func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.fillHoles(at: offset, length: length)
  }

  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    await file.endOfData(from: offset)
  }

  package func extend(to length: UInt64) async throws(Errno) {
    if try await self.length() < length { try await setLength(length) }
  }

  package func setLength(_ length: UInt64) async throws(Errno) {
    if let fault = fails(.resize) { throw fault.errno }
    try await file.setLength(length)
  }
}

// What a host without room may do to a discard: it is a hint, and what cannot be let go of stays. Its
// data may have gone already, to make room (``HostFile/punchHole(at:length:)``).

extension WorkloadOptions {
  /// Expects of discards what they leave during a fault; what has gone deciphers to anything.
  package mutating func allow(_ fault: Fault?, isEnciphered: Bool = false) {
    guard fault?.errno == .noSpace, discards != .anything else { return }
    discards = isEnciphered ? .anything : .either
  }
}

extension Bench {
  /// Lets punched ranges of a regular file read as zeros, as they do where it matters.
  package func allow(_ fault: Fault?) {
    if fault?.errno == .noSpace && !memory.traits.isBlockDevice { memory.punchesToZeros = true }
  }
}
