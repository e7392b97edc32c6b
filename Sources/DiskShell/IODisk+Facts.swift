import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// What the disk is and where its data lies.
extension IODisk {
  /// A range that lies, or does not lie, in the image itself.
  struct Allocation {
    var length: UInt64
    var isAllocated: Bool
  }

  /// Tells of the longest range from `offset` on, up to `length` bytes, that is all alike.
  func allocation(
    at offset: UInt64, length: UInt64
  ) async throws(IOFailure) -> Allocation {
    guard case .image(let image) = kind else {
      return Allocation(length: length, isAllocated: true)
    }
    do throws(ImageError) {
      let found = try await image.engine.allocation(at: GuestOffset(offset), length: length)
      return Allocation(length: found.length, isAllocated: found.isAllocated)
    } catch { throw .queryFailed(error.errno) }
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

  func resize(to size: UInt64) async throws(IOFailure) {
    switch kind {
    case .raw(let disk):
      do throws(Errno) { try await disk.raw.resize(to: size) } catch {
        throw .request("truncate", error)
      }
    case .image(let image):
      do throws(ImageError) { try await image.engine.resize(to: size) } catch {
        throw .disk(error.message)
      }
    }
  }

  /// The lines of `info`.
  func facts() throws(IOFailure) -> String {
    switch kind {
    case .raw: return Self.text(name: "raw", cluster: 0, state: 0)
    case .image(let image):
      let geometry = image.engine.geometry
      let tables = (size + geometry.bytesPerL2Table - 1) / geometry.bytesPerL2Table
      let text = Self.text(
        name: "qcow2", cluster: geometry.clusterSize, state: tables * geometry.bytesPerL2Table)
      let path = opening.path ?? ""
      do throws(ToolError) {
        let open = "/proc/self/fd/\(image.files[0].descriptor)"
        let bytes = try FileBytes(path: open, access: .readOnly, lock: ToolLock.none)
        let info = try ImageInfo(reading: bytes, path: path, allocatedBytes: 0)
        return text + info.specificText
      } catch { throw .disk("\(path): \(error.message)") }
    }
  }

  private static func text(name: String, cluster: UInt64, state: UInt64) -> String {
    "format name: \(name)\ncluster size: \(IOReport.size(cluster))\n"
      + "vm state offset: \(IOReport.size(state))\n"
  }
}
