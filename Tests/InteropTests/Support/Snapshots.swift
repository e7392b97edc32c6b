import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import TestTools
import Uring

/// Runs the body with an image opened by our engine with given options, then closes it.
func withEngine(
  _ path: String, _ options: ImageOptions = ImageOptions(), dataFile: String? = nil,
  backing: String? = nil, _ body: @escaping (Image) async throws -> Void
) throws {
  try runBlocking { () async throws(any Error) in
    let readOnly = options.readOnly || options.snapshot != nil
    var sources = ImageSources(file: try RingHostFile.open(path, readOnly: readOnly))
    if let dataFile { sources.dataFile = try RingHostFile.open(dataFile, readOnly: readOnly) }
    if let backing {
      let file = try RingHostFile.open(backing, readOnly: true)
      sources.backing = RawLayer(file, length: try await file.length())
    }
    let image = try await Image.open(sources, options: options)
    try await body(image)
    try await image.close()
  }
}

/// Checks that the disk as it was at the snapshot reads like a raw file, at the same size.
func verifySnapshot(
  _ path: String, _ selector: SnapshotSelector, raw: String, size: UInt64,
  _ random: inout SeededGenerator
) throws {
  var options = DiskImageOptions(path: path, readOnly: true)
  options.engine.snapshot = selector
  let chosen = options
  var fork = random.fork()
  let shadow = try Shadow(raw, size: size)
  try runBlocking { () async throws(any Error) in
    let session = try await ImageSession(chosen, &fork)
    guard session.image.size == size else {
      throw Mismatch(description: "snapshot \(selector): size \(session.image.size), not \(size)")
    }
    try await session.verify(shadow)
    guard
      await session.image.serve(
        BlockRequest(.discard, length: 512), at: RequestSlot(worker: 0, number: 0))
        == .failed(.readOnly)
    else { throw Mismatch(description: "a snapshot was written to") }
    try await session.disk.close()
  }
}

/// Bytes that differ from place to place.
func patternBuffer(_ count: Int, seed: UInt64) -> IOBuffer {
  let buffer = IOBuffer(count: count)
  var random = SeededGenerator(seed: seed)
  for index in 0..<(count / 8) {
    buffer.base.storeBytes(of: random.next(), toByteOffset: index * 8, as: UInt64.self)
  }
  return buffer
}
