import BlockCore
import QCOW2Engine
import QCOW2Tools
import Testing
import Uring

/// Images that are nonsense: the engine refuses them or serves what can be served, never traps,
/// hangs, grows without bound, or writes where it must not.
///
/// One case at a time, so that the watchdog and the measurement of memory know whose fault it is.
@Suite(.serialized)
struct BadInputTests {
  @Test(arguments: [2, 3], [9, 12, 16])
  func theHandmadeImageIsCorrectBeforeItIsSpoiled(version: Int, clusterBits: Int) throws {
    let image = HandmadeImage(clusterBits: clusterBits, version: version)
    let result = try ImageCheck.run(MemoryBytes(image.bytes))
    #expect(result.corruptions == 0 && result.leaks == 0 && result.checkErrors == 0)
    let trial = Trial("untouched", image.bytes)
    let verdicts = trial.run()
    guard case .served = verdicts.reader, case .served = verdicts.writer else {
      Issue.record("refused: \(verdicts)")
      return
    }
  }

  /// A trial that writes nothing but its expectations down would pass with an engine that does
  /// nothing: this one must really have written.
  @Test func aTrialWritesWhatItSays() async throws {
    let image = HandmadeImage()
    let file = SparseFile(image.bytes)
    try runBlocking { () async throws(ImageError) in
      let exercise = Exercise(image: try await Image.open(file, options: ImageOptions()))
      #expect(await exercise.write(0xee, 512..<1536) == nil)
      let answers = await exercise.readAll()
      let bytes = try? answers[0]?.get()
      #expect(bytes?[0] == 1 && bytes?[512] == 0xee && bytes?[1535] == 0xee && bytes?[1536] == 4)
      try await exercise.image.close()
    }
    #expect(file.changes > 0)
  }
}
