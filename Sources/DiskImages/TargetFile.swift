package import BlockCore
import Glibc
package import HostFiles
import QCOW2Tools
import Synchronization

/// The file of an image that a command fills, as its engine sees it.
///
/// It need not sync (`-t unsafe`). An image that was made with ``ImageCreate/incompleteMagic`` has its magic
/// for the engine at once, and in the file with ``release()``: a copy that dies leaves a file that no
/// program takes for the whole image.
package final class TargetFile: HostFile {
  private static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xfb]

  /// The file itself.
  package let file: RingHostFile
  private let syncs: Bool
  private let isWithheld: Atomic<Bool>

  /// A file as it is.
  package init(_ file: RingHostFile, syncs: Bool) {
    self.file = file
    self.syncs = syncs
    let sector = IOBuffer(count: 4096)
    let count = unsafe pread(file.descriptor, sector.base, sector.count, 0)
    let isIncomplete = sector.withBytes { bytes in
      count >= 4
        && ImageCreate.incompleteMagic.indices.allSatisfy {
          bytes[$0] == ImageCreate.incompleteMagic[$0]
        }
    }
    isWithheld = Atomic(isIncomplete)
  }

  package var traits: HostFileTraits { file.traits }

  /// Puts the magic back: the image is whole.
  package func release() async throws(Errno) {
    guard isWithheld.load(ordering: .relaxed) else { return }
    // What the magic makes visible comes first.
    try await sync()
    isWithheld.store(false, ordering: .relaxed)
    try await change(to: Self.magic)
    try await sync()
  }

  /// One sector, which a disk writes as a whole.
  private func change(to magic: [UInt8]) async throws(Errno) {
    let sector = IOBuffer(count: max(512, traits.offsetAlignment))
    defer { withExtendedLifetime(sector) {} }
    try await file.read(into: sector.data, at: HostOffset(0))
    Self.put(magic, into: sector)
    try await file.write(from: sector.data, at: HostOffset(0))
  }

  private static func put(_ magic: [UInt8], into buffer: IOBuffer) {
    buffer.withMutableBytes { bytes in
      for index in magic.indices where index < bytes.count { bytes[index] = magic[index] }
    }
  }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try await file.read(into: buffer, at: offset)
    guard offset.bytes == 0, isWithheld.load(ordering: .relaxed), buffer.count >= 4,
      let memory = unsafe buffer.memory
    else { return }
    for (index, byte) in Self.magic.enumerated() {
      unsafe memory.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
    }
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard offset.bytes == 0, isWithheld.load(ordering: .relaxed),
      let memory = unsafe buffer.memory, buffer.count > 0
    else { return try await file.write(from: buffer, at: offset) }
    let copy = IOBuffer(count: buffer.count)
    defer { withExtendedLifetime(copy) {} }
    unsafe copy.base.copyMemory(from: memory, byteCount: buffer.count)
    Self.put(ImageCreate.incompleteMagic, into: copy)
    try await file.write(from: copy.data, at: offset)
  }

  package func sync() async throws(Errno) {
    if syncs { try await file.sync() }
  }

  // MARK: As the file does

  package func fillWithZeroes(_ buffer: DataBuffer) async throws(Errno) {
    try await file.fillWithZeroes(buffer)
  }
  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.writeZeroes(at: offset, length: length)
  }
  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.punchHole(at: offset, length: length)
  }
  package func length() async throws(Errno) -> UInt64 { try await file.length() }
  package func setLength(_ length: UInt64) async throws(Errno) { try await file.setLength(length) }
  package func extend(to length: UInt64) async throws(Errno) {
    try await file.extend(to: length)
  }
  package func reserve(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Reservation { try await file.reserve(at: offset, length: length) }
  package func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.allocateZeroes(at: offset, length: length)
  }
  package func allocateHoles(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Bool { try await file.allocateHoles(at: offset, length: length) }
  package func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.fillHoles(at: offset, length: length)
  }
  package func extent(at offset: HostOffset, length: UInt64) async -> HostExtent {
    await file.extent(at: offset, length: length)
  }
  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    await file.endOfData(from: offset)
  }
  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    await file.clear(at: offset, length: length)
  }
}

/// The ``TargetFile``s of one disk, in the order in which it asked for them.
package final class TargetFiles: Sendable {
  private let files = Mutex<[TargetFile]>([])

  /// None yet.
  package init() {}

  /// Has a disk that is opened with these options use a ``TargetFile`` for each of its files.
  package func use(in options: inout DiskImageOptions, syncs: Bool) {
    let wrapped: @Sendable (RingHostFile) -> any HostFile = { file in
      if let known = self.files.withLock({ $0.last { $0.file === file } }) { return known }
      let target = TargetFile(file, syncs: syncs)
      self.files.withLock { $0.append(target) }
      return target
    }
    options.engineFile = wrapped
    options.headerFile = wrapped
  }

  /// What stands for the file of the image itself.
  package func image(of disk: any OpenDisk) -> TargetFile? {
    files.withLock { $0.last { $0.file === disk.files.first } }
  }
}
