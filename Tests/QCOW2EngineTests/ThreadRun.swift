import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Real threads on one image: what the tests that use them have in common.
enum ThreadRun {
  /// A small disk with data in its first 40 clusters, which are shared with a snapshot or not.
  static func builder(clusterBits: Int, hasSnapshot: Bool = false) -> ImageBuilder {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.size = clusterBits == 9 ? 200 << 10 : 3 << 20
    builder.hasSnapshot = hasSnapshot
    for cluster in 0..<40 { builder.mappings[cluster] = .data }
    return builder
  }

  /// Workers with a few slots each; what is dirty is written back at once.
  static func options(workers: Int = 4) -> ImageOptions {
    var options = ImageOptions()
    options.workers = workers
    options.slotsPerWorker = 4
    options.dirtyAgeMilliseconds = 0
    return options
  }

  /// Four workers with such options, on images of a shape.
  static func bench(_ shape: ImageShape) -> Bench {
    let bench = Bench(shape.builder, schedule: nil, capacity: 1 << 28, isImmediate: true)
    shape.adjust(bench)
    bench.options.workers = 4
    bench.options.slotsPerWorker = 4
    bench.options.dirtyAgeMilliseconds = 0
    return bench
  }

  /// Runs clients, spread over as many threads as there are workers, then closes the image.
  ///
  /// - Parameters:
  ///   - clients: Of ``image``; none may have found a problem at the end.
  ///   - image: Closed on the first thread.
  ///   - workers: The number of threads.
  ///   - times: How many times as long as usual.
  ///   - beside: Runs on a thread of its own meanwhile, and hears when the clients are done.
  static func run(
    _ clients: [ThreadClient], on image: Image, workers: Int = 4, times: Int = 1,
    beside: @escaping @Sendable (_ isOver: Guarded<Bool>) async -> Void = { _ in }
  ) async {
    let threads = (0...workers).map { _ in ThreadExecutor() }
    let isOver = Guarded(false)
    let operations = testSetting("QUBLK_THREAD_OPERATIONS", default: 150) * times
    await withTaskGroup(of: Void.self) { group in
      group.addTask(executorPreference: threads[workers]) { await beside(isOver) }
      await withTaskGroup(of: Void.self) { group in
        for (number, client) in clients.enumerated() {
          group.addTask(executorPreference: threads[number % workers]) {
            await client.run(operations: operations)
          }
        }
      }
      isOver.withLock { $0 = true }
    }
    await Task(executorPreference: threads[0]) {
      do { try await image.close() } catch { Issue.record("close: \(error)") }
    }.value
    for thread in threads { thread.stop() }
    #expect(clients.flatMap(\.problems).isEmpty)
  }

  /// The closed image is sound, and has what the clients wrote.
  static func expectSound(_ verifier: ImageVerifier, _ clients: [ThreadClient] = []) {
    let report = verifier.check()
    #expect(
      report.errors.isEmpty && report.leaks == 0, "\(report.errors.prefix(3)), \(report.leaks)")
    #expect(clients.compactMap { $0.problemOnDisk(verifier) }.isEmpty)
  }
}
