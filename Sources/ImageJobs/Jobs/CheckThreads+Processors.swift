import QCOW2Tools
import Uring

extension CheckThreads {
  /// One for each processor that this process may use, `limit` at most; the caller's thread is one of them.
  ///
  /// Fewer run if the host gives no more.
  static func onProcessors(atMost limit: Int) -> CheckThreads {
    CheckThreads(min(JobThreads.processors, limit)) { count, body in
      let others = (1..<count).compactMap { number in
        try? WorkerThread(name: "qublk-check-\(number)") { body(number) }
      }
      body(0)
      for thread in others { thread.join() }
    }
  }
}
