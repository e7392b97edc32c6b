import BlockCore
package import DiskImages
import HostFiles
package import QCOW2Engine
import QCOW2Format

/// The VM state of a snapshot goes to a raw file: `vmstate export`.
///
/// The disk is opened at that snapshot, which the job names once more. The file is whole afterwards, or as it was.
package struct VMStateExportJob: VMStateJob {
  package static let name = "vmstate-export"
  package var changesImage: Bool { false }
  package var snapshot: SnapshotSelector
  package var file: String

  package init(_ snapshot: SnapshotSelector, file: String) {
    self.snapshot = snapshot
    self.file = file
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    let engine = try SnapshotTarget.engine(of: disk)
    let size: UInt64
    do throws(ImageError) {
      let found = try await engine.snapshotWithVMState(snapshot)
      size = found.size
      if size == 0 { throw .noVMState(id: found.snapshot.id) }
    } catch { throw .image(error) }
    try VMStateFile.refuse(file, ifIn: disk)
    context.progress.begin(size, .bytes)
    try await VMStateFile.replace(file) { (target) async throws(JobError) in
      let buffer = IOBuffer(count: VMStateFile.pieceBytes)
      defer { withExtendedLifetime(buffer) {} }
      var done: UInt64 = 0
      while done < size {
        let part = buffer.data.slice(0, Int(min(UInt64(buffer.count), size - done)))
        do throws(ImageError) { try await engine.readVMState(into: part, at: done) } catch {
          throw .image(error)
        }
        do throws(Errno) {
          if !part.isAllZeros { try await target.write(from: part, at: HostOffset(done)) }
        } catch { throw .vmStateFile(file, "\(error)") }
        done += UInt64(part.count)
        context.progress.reach(done)
        try await context.checkpoint(UInt64(part.count))
      }
      do throws(Errno) { try await target.setLength(size) } catch {
        throw .vmStateFile(file, "\(error)")
      }
    }
    return NoValue()
  }
}
