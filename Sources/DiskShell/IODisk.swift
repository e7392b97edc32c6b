import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import QCOW2Format
import QCOW2Tools
import Serving

/// What `open` has opened, as a worker serves it: whole sectors, by plan or by service.
@safe
final class IODisk: @unchecked Sendable {  // why: confined to its loop's thread
  enum Kind {
    case image(DiskImage)
    case raw(RawDisk)
  }

  let kind: Kind
  let opening: DiskOpening
  /// The disk, for jobs.
  let open: any OpenDisk
  private let target: any BlockTarget
  private let requests: FileRequests
  private var slots = IOSlots()
  let ranges = IOWriteRanges()

  private init(_ kind: Kind, _ opening: DiskOpening) {
    self.kind = kind
    self.opening = opening
    switch kind {
    case .image(let image): open = image
    case .raw(let disk): open = disk
    }
    target = open.target
    requests = FileRequests(target, files: open.files, worker: 0)
  }

  /// Opens what is asked for; `secrets` are those that can be named.
  static func open(
    _ opening: DiskOpening, _ secrets: [ObjectSecret]
  ) async throws(IOFailure) -> IODisk {
    if opening.copiesOnRead && opening.isReadOnly {
      throw .openOption(OpeningError("Can't use copy-on-read on read-only device"))
    }
    var opening = opening
    opening.slots = IOSlots.count
    let overlay = try opening.usesOverlay ? overlay(over: &opening) : nil
    defer { overlay?.remove() }
    let options = try IOFailure.opening { [opening] () throws(OpeningError) in
      try opening.diskOptions(secrets)
    }
    do throws(DiskImageError) {
      if opening.format == .raw {
        return IODisk(.raw(try await RawDisk.open(options)), opening)
      }
      return IODisk(.image(try await DiskImage.open(options)), opening)
    } catch { throw .open(error) }
  }

  /// Makes an overlay over what `opening` says, and has it opened instead.
  private static func overlay(
    over opening: inout DiskOpening
  ) throws(IOFailure) -> TemporaryOverlay {
    do throws(ToolError) { return try TemporaryOverlay(over: &opening) } catch {
      throw .disk("\(opening.path ?? ""): \(error.message)")
    }
  }

  /// The bytes of the disk, a multiple of 512.
  var size: UInt64 { target.size }

  /// The bytes of a cluster; nil where there are none.
  var clusterSize: UInt64? {
    switch kind {
    case .image(let image): image.engine.geometry.clusterSize
    case .raw: nil
    }
  }

  /// Writes back and lets go of everything; no request may be running.
  func close() async throws(DiskImageError) {
    try await open.close()
  }

  /// One step of the engine's background work.
  func maintain() async { await open.maintain() }

  // MARK: Requests

  /// Carries out a request of whole sectors.
  func perform(_ request: BlockRequest) async -> Errno? {
    let slot = await takeSlot()
    defer { slots.give(slot) }
    return await requests.perform(request, slot: slot)
  }

  private func takeSlot() async -> Int {
    while true {
      if let slot = slots.take() { return slot }
      unsafe await withUnsafeContinuation { unsafe slots.wait($0) }
    }
  }
}
