import BlockCore
import Serving
import Testing

/// What a source must keep to traps in debug builds when it does not.
struct ServingAssertionTests {
  @Test func aRequestHasASlotThatThereIs() async {
    await #expect(processExitsWith: .failure) {
      try ScriptedSource.run(ScriptedTarget(nil), slots: 2) { source in
        source.requests.start(BlockRequest(.flush), slot: 2, for: source)
      } then: { _ in
      }
    }
  }

  @Test func aTransferComesBackOnce() async {
    await #expect(processExitsWith: .failure) {
      try ScriptedSource.run(ScriptedTarget(nil)) { source in
        source.requests.transferred(0, part: 0, result: 512, for: source)
      } then: { _ in
      }
    }
  }
}
