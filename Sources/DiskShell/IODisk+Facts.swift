import BlockCore
import DiskImages
import HostFiles
import ImageJobs
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// What the disk is and where its data lies.
extension IODisk {
  /// Hands `show` the ranges of a part of the disk that are all alike, in their order.
  func map(
    _ part: MapJob, _ show: @escaping @Sendable (MapRange) -> Void
  ) async throws(IOFailure) {
    let context = JobContext<MapRange>(take: { range in show(range) })
    var part = part
    part.isOwnOnly = true
    do throws(JobError) { _ = try await part.run(on: open, context) } catch {
      if case .image(let error) = error { throw .queryFailed(error.errno) }
      throw .disk(error.message)
    }
  }

  /// Fails where zeros would have to be written as data.
  func requireZeroesWithoutData(_ offset: UInt64, _ count: UInt64) async throws(Errno) {
    guard holds(offset, count) else { throw .io }
    let unit = clusterSize ?? 512
    let end = offset + count
    let head = offset % unit == 0 ? 0 : min(unit - offset % unit, count)
    let tail = end % unit == 0 || end == size ? 0 : min(end % unit, count - head)
    guard try await saysZero(offset, head), try await saysZero(end - tail, tail) else {
      throw .notSupported
    }
  }

  private func saysZero(_ offset: UInt64, _ count: UInt64) async throws(Errno) -> Bool {
    if count == 0 { return true }
    guard case .image(let image) = kind else { return false }
    do throws(ImageError) {
      return try await image.engine.isMappedToZeroes(at: GuestOffset(offset), length: count)
    } catch { throw error.errno }
  }

  /// Fails where compressed data cannot go: it comes in whole clusters of a qcow2 image.
  func requireCompressible(_ offset: UInt64, _ count: UInt64) throws(Errno) {
    guard let clusterSize else { throw .notSupported }
    guard holds(offset, count) else { throw .io }
    if count == 0 { return }
    let end = offset + count
    guard offset % clusterSize == 0, end % clusterSize == 0 || end == size else {
      throw .invalid
    }
  }

  /// Changes the size, to a smaller one too; `places` is what a larger one gets in advance.
  func resize(to size: UInt64, _ places: Preallocation) async throws(IOFailure) {
    do throws(JobError) {
      let job = ResizeJob(.exactly(size), mayShrink: true, preallocation: places)
      _ = try await job.run(on: open, JobContext())
    } catch {
      if case .raw(let errno) = error { throw .request("truncate", errno) }
      throw .disk(error.message)
    }
  }

  /// The lines of `info`.
  func facts() async throws(IOFailure) -> String {
    switch kind {
    case .raw: return Self.text(name: "raw", cluster: 0, state: 0)
    case .image(let image):
      let geometry = image.engine.geometry
      let tables = (size + geometry.bytesPerL2Table - 1) / geometry.bytesPerL2Table
      let text = Self.text(
        name: "qcow2", cluster: geometry.clusterSize, state: tables * geometry.bytesPerL2Table)
      return text + (try await report(of: image)).specificText
    }
  }

  private func report(of image: DiskImage) async throws(IOFailure) -> ImageInfoReport {
    let path = opening.path ?? ""
    let open = "/proc/self/fd/\(image.files[0].descriptor)"
    do throws(JobError) {
      let bytes: FileBytes
      do throws(ToolError) {
        bytes = try FileBytes(path: open, access: .readOnly, lock: ToolLock.none)
      } catch { throw .file(error) }
      return try await InfoJob().run(on: ImageFile(bytes, path: path), JobContext())
    } catch { throw .disk("\(path): \(error.message)") }
  }

  private static func text(name: String, cluster: UInt64, state: UInt64) -> String {
    "format name: \(name)\ncluster size: \(IOReport.size(cluster))\n"
      + "vm state offset: \(IOReport.size(state))\n"
  }
}
