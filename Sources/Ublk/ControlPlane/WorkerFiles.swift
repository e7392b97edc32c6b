package import BlockCore

/// The host files that the workers of a device know by number, and how they change while it serves.
///
/// Usable from any thread. Changes are for one task at a time: the job that swaps files.
package struct WorkerFiles: Sendable {
  let threads: [QueueThread]

  /// Has every worker know a host file by a number.
  ///
  /// From the return on, plans may use the number.
  ///
  /// - Parameters:
  ///   - descriptor: The file; it stays open until ``remove(_:)`` has returned, or the device has ended.
  ///   - number: A number that no file has.
  /// - Throws: `noDevice` if a worker has ended, else the errno of a worker's ring; no worker knows the file
  ///   then.
  package func add(_ descriptor: Int32, as number: UInt8) async throws(Errno) {
    for thread in threads {
      do throws(Errno) { try await thread.setFile(number, descriptor) } catch {
        await remove(number)
        throw error
      }
    }
  }

  /// Takes a number away from all workers; its file may be closed then.
  ///
  /// No plan that is made from now on may use it. Transfers that the kernel has keep the file open until
  /// they end. A worker that has ended knows no files any more.
  package func remove(_ number: UInt8) async {
    // A ring that keeps the slot does no harm: nothing names it until a file is put there.
    for thread in threads { try? await thread.setFile(number, nil) }
  }
}
