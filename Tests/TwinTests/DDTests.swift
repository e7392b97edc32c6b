import TestTools
import Testing

/// `dd` beside qemu-img's: the sizes of what comes out, its bytes, and exit statuses.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct DDTests {
  @Test(arguments: [
    [], ["bs=1000", "count=3"], ["bs=700", "count=3", "skip=1"], ["bs=1M", "skip=1"],
    ["bs=1M", "skip=100"], ["bs=1k", "count=0"], ["bs=64k", "count=5", "skip=2"],
    ["count=2", "skip=5"], ["bs=3", "count=1000"], ["bs=1G"], ["bs=4096", "skip=1023"],
    ["count=9223372036854775807", "bs=1M"], ["bs=2147483647", "skip=9223372036854775807"],
  ])
  func parts(_ words: [String]) throws {
    for sample in Sample.some(2, 11, { $0.size <= 16 << 20 && $0.cipher == .plain }) {
      for format in ["raw", "qcow2"] {
        try Conversion.run(
          ["dd", "-O", format] + words + ["if=\(Sample.name)", "of=target"], sample,
          target: format)
      }
    }
  }

  @Test func encryptedInput() throws {
    let sample = try #require(Sample.all.first { $0.shape.cipher == .luks })
    try Conversion.run(
      ["dd"] + sample.object + ["--image-opts", "if=\(sample.options)", "of=target", "bs=64k"],
      sample, target: "raw")
  }

  @Test(arguments: [
    ["if=image.qcow2"], ["of=target"], [], ["if=image.qcow2", "of=target", "bs=0"],
    ["if=image.qcow2", "of=target", "bs=3G"], ["if=image.qcow2", "of=target", "bs=x"],
    ["if=image.qcow2", "of=target", "foo=1"], ["if=image.qcow2", "of=target", "seek=1"],
    ["if=image.qcow2", "of=target", "count=-1"], ["if=image.qcow2", "of=target", "extra"],
    ["if=nosuch", "of=target"], ["-n", "if=image.qcow2", "of=target"],
    ["-f", "foo", "if=image.qcow2", "of=target"], ["-O", "foo", "if=image.qcow2", "of=target"],
    ["if=image.qcow2", "of=nosuch/target"], ["--image-opts", "if=image.qcow2", "of=target"],
  ])
  func wrongWordsLeaveNothing(_ words: [String]) throws {
    let twin = try Conversion.run(["dd"] + words, Sample.all[0], target: "raw")
    #expect(twin.ours.status == 1)
    #expect(!fileExists("\(twin.ourSample.path)/target"))
  }
}
