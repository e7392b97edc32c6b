import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import QCOW2Format

/// What `open` has opened, as a worker serves it: whole sectors, by plan or by service.
@safe
final class IODisk: @unchecked Sendable {  // why: confined to its loop's thread
  enum Kind {
    case image(DiskImage)
    case raw(RawDisk)
  }

  let kind: Kind
  let opening: IOOpening
  private let target: any BlockTarget
  private let files: [RingHostFile]
  private var slots = IOSlots()
  let ranges = IOWriteRanges()

  private init(_ kind: Kind, _ opening: IOOpening) {
    self.kind = kind
    self.opening = opening
    switch kind {
    case .image(let image):
      target = image.engine
      files = image.files
    case .raw(let disk):
      target = disk.target
      files = disk.files
    }
  }

  /// Opens what is asked for; `secrets` are those that can be named.
  static func open(
    _ opening: IOOpening, _ secrets: [ObjectSecret]
  ) async throws(IOFailure) -> IODisk {
    if opening.copiesOnRead && opening.isReadOnly {
      throw .openOption("Can't use copy-on-read on read-only device")
    }
    let options = try opening.diskOptions(secrets)
    do throws(DiskImageError) {
      switch opening.format {
      case .qcow2:
        return IODisk(.image(try await DiskImage.open(options)), opening)
      case .raw: return IODisk(.raw(try await RawDisk.open(options)), opening)
      }
    } catch { throw .open(error) }
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
    switch kind {
    case .image(let image): try await image.close()
    case .raw(let disk): try await disk.close()
    }
  }

  /// One step of the engine's background work.
  func maintain() async {
    if case .image(let image) = kind { await image.engine.maintain() }
  }

  // MARK: Requests

  /// Carries out a request of whole sectors: what the hit path plans as the data plane does, the
  /// rest by service.
  func perform(_ request: BlockRequest) async -> Errno? {
    let slot = await takeSlot()
    defer { slots.give(slot) }
    guard let transfers = plan(request, slot) else {
      return await target.serve(request, worker: 0, slot: slot).errno
    }
    var failure: Errno?
    for transfer in transfers where failure == nil {
      do throws(Errno) { try await carryOut(transfer, of: request) } catch { failure = error }
    }
    if target.finish(worker: 0, slot: slot, failed: failure != nil) == .needsService {
      return await target.serve(request, worker: 0, slot: slot).errno
    }
    return failure
  }

  private func takeSlot() async -> Int {
    while true {
      if let slot = slots.take() { return slot }
      unsafe await withUnsafeContinuation { unsafe slots.wait($0) }
    }
  }

  private func plan(_ request: BlockRequest, _ slot: Int) -> [HostTransfer]? {
    unsafe withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 16) { plan in
      switch unsafe target.plan(request, worker: 0, slot: slot, into: plan) {
      case .needsService: nil
      case .transfers(let count): unsafe Array(plan[0..<count])
      }
    }
  }

  private func carryOut(
    _ transfer: HostTransfer, of request: BlockRequest
  ) async throws(Errno) {
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    let file = files[Int(transfer.file)]
    switch (transfer.kind, request.operation) {
    case (.zeroes, _): try await file.fillWithZeroes(data)
    case (.file, .read): try await file.read(into: data, at: transfer.hostOffset)
    case (.file, _): try await file.write(from: data, at: transfer.hostOffset)
    }
  }
}
