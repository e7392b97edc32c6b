import TestTools
import Testing

/// The samples are what the other twins stand on: QEMU must make them all, and both must find them sound.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct SampleTests {
  @Test func everyShapeIsMade() {
    #expect(
      Sample.all.count == SampleShape.corners.count + testSetting("QUBLK_SAMPLES", default: 12))
    for shape in SampleShape.corners { #expect(shape.isValid, "\(shape)") }
  }

  @Test func bothProgramsFindEverySampleSound() throws {
    for sample in Sample.tried where !sample.isEncrypted {
      let likeness = Likeness(comparesOutput: false)
      let twin = try Twin.read(["check"] + sample.named, sample, likeness)
      #expect(twin.theirs.status == 0, "\(sample): \(twin.theirs.output)\(twin.theirs.errors)")
    }
  }
}
