import BlockCore
package import DiskImages
import HostFiles
package import QCOW2Engine
import Synchronization

/// A raw file becomes the VM state of a snapshot: `vmstate import`.
///
/// For a disk that nobody uses. The snapshot has its old state or the new one; its disk stays. A file
/// without bytes takes the state away.
package struct VMStateImportJob: VMStateJob {
  package static let name = "vmstate-import"
  package var changesImage: Bool { true }
  package var snapshot: SnapshotSelector
  package var file: String

  package init(_ snapshot: SnapshotSelector, file: String) {
    self.snapshot = snapshot
    self.file = file
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    let engine = try SnapshotTarget.engine(of: disk)
    let source = try VMStateFile.open(file)
    try VMStateFile.refuse(file, ifIn: disk)
    let size: UInt64
    do throws(Errno) { size = try await source.length() } catch {
      throw .vmStateFile(file, "\(error)")
    }
    context.progress.begin(size, .bytes)
    let obstacle = Mutex<JobError?>(nil)
    do throws(ImageError) {
      let replaced = try await engine.replaceVMState(of: snapshot, size: size) { buffer, offset in
        do throws(JobError) {
          do throws(Errno) { try await source.read(into: buffer, at: HostOffset(offset)) } catch {
            throw .vmStateFile(file, "\(error)")
          }
          context.progress.reach(offset + UInt64(buffer.count))
          try await context.checkpoint(UInt64(buffer.count))
          return true
        } catch {
          obstacle.withLock { $0 = error }
          return false
        }
      }
      if replaced != nil { return NoValue() }
    } catch { throw .image(error) }
    throw obstacle.withLock { $0 } ?? .cancelled
  }
}
