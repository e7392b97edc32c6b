import Glibc
import Synchronization
import Testing

@testable import Daemon

/// An attempt to stop a device, and who may give it up.
@Suite struct DeviceStopTests {
  @Test func `an attempt that searches for users can be abandoned, and then does nothing`() {
    let gate = Gate()
    let attempt = DeviceStop(.ifUnused) { attempt in
      gate.wait()
      guard attempt.beginStop() else { return .serving([]) }
      gate.hasStopped.store(true, ordering: .sequentiallyConsistent)
      return .ended([])
    }
    #expect(attempt.abandon())
    gate.open()
    while attempt.outcome == nil { usleep(1000) }
    let hasStopped = gate.hasStopped.load(ordering: .sequentiallyConsistent)
    #expect(!hasStopped)
  }

  @Test func `an attempt that has begun to stop the device cannot`() {
    let gate = Gate()
    let attempt = DeviceStop(.ifUnused) { attempt in
      let begins = attempt.beginStop()
      gate.hasStopped.store(begins, ordering: .sequentiallyConsistent)
      gate.wait()
      return .ended([])
    }
    while !gate.hasStopped.load(ordering: .sequentiallyConsistent) { usleep(1000) }
    #expect(!attempt.abandon())
    gate.open()
    while attempt.outcome == nil { usleep(1000) }
    if case .ended? = attempt.outcome {} else { Issue.record("the attempt was lost") }
  }
}

private final class Gate: Sendable {
  let hasStopped = Atomic(false)
  private let isOpen = Atomic(false)

  func open() { isOpen.store(true, ordering: .sequentiallyConsistent) }

  func wait() { while !isOpen.load(ordering: .sequentiallyConsistent) { usleep(1000) } }
}
