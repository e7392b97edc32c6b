package import BlockCore
import CPlatform
import CUblk
import Glibc
package import Serving
import Uring

/// A queue's worker without a driver, for counting what a request costs on the way that is shipped.
///
/// Everything is the device's own but for the commands: they are entries that do nothing, so each
/// completes at once, and the next request of its tag has come: always the same one. The memory in which
/// the driver would describe requests is a file of ours.
package enum DriverlessQueue {
  /// Serves requests until `count` have come, and those in flight.
  ///
  /// - Parameters:
  ///   - target: What serves them; its worker 0.
  ///   - files: The descriptors of its host files.
  ///   - requests: The request of each tag: operation, first byte and bytes.
  ///   - count: How many requests must have come.
  ///   - counters: Where they are counted.
  /// - Throws: The errno of what could not be set up.
  package static func serve(
    _ target: any BlockTarget, files: [Int32],
    requests: [(operation: BlockOperation, offset: UInt64, length: UInt64)], count: UInt64,
    counters: QueueCounters
  ) throws(Errno) {
    let descriptor = try describe(requests)
    defer { close(descriptor) }
    let abandoned = AbandonFlag()
    let setup = QueueSetup(
      queue: 0, depth: requests.count, maxIOBytes: 1 << 20, usesZeroCopy: false,
      usesBatches: false, commandOpcode: .nop, pollLimit: 0, slowPathData: .memory,
      requestOptions: RequestDriverOptions(), registeredBuffers: 1, characterDevice: descriptor,
      fileDescriptors: files, zeroDescriptor: -1, affinity: nil, target: target,
      counters: counters, onLoss: { _ in },
      maintenance: {
        while counters.arrivals.current < count {
          await WorkerLoop.current?.sleep(milliseconds: 10)
        }
        abandoned.set()
      })
    let failure = Failure()
    let thread = try WorkerThread(name: "qublk-q0") {
      do throws(Errno) {
        var stage = WorkerStage.memory
        let worker = try QueueWorker(setup, abandoned, &stage)
        worker.fetchAll()
        worker.serve()
        worker.release()
      } catch {
        WorkerLoop.current?.leaveThread()
        failure.error = error
      }
    }
    thread.join()
    if let error = failure.error { throw error }
  }

  private final class Failure: @unchecked Sendable {  // why: written before the join, read after
    var error: Errno?
  }

  /// A file of descriptors, as the driver would map them; the caller closes it.
  static func describe(
    _ requests: [(operation: BlockOperation, offset: UInt64, length: UInt64)]
  ) throws(Errno) -> Int32 {
    let file = unsafe open("/dev/shm", O_RDWR | O_CLOEXEC | __O_TMPFILE | O_DIRECTORY, 0o600)
    guard file >= 0 else { throw Errno(errno) }
    let raw = requests.map { request in
      ublk_io_descriptor(
        op_flags: UInt32(number(of: request.operation)),
        nr_sectors: UInt32(request.length / 512), start_sector: request.offset / 512, addr: 0)
    }
    // A page more than they take: the worker maps whole pages.
    let result = unsafe raw.withUnsafeBytes { bytes in
      unsafe ftruncate(file, off_t(bytes.count + 4096)) == 0
        && pwrite(file, bytes.baseAddress, bytes.count, 0) == bytes.count
    }
    guard result else {
      close(file)
      throw .io
    }
    return file
  }

  private static func number(of operation: BlockOperation) -> Int {
    switch operation {
    case .read: UBLK_IO_OP_READ
    case .write: UBLK_IO_OP_WRITE
    case .flush: UBLK_IO_OP_FLUSH
    case .discard: UBLK_IO_OP_DISCARD
    case .writeZeroes: UBLK_IO_OP_WRITE_ZEROES
    }
  }
}
