import BlockCore
import Testing
import TestTools

@testable import DiskImages

@Suite struct DiskImageErrorTests {
  private func error(
    _ subject: DiskImageError.Subject, _ reason: DiskImageError.Reason, referrer: String? = nil
  ) -> String {
    DiskImageError(image: "vm.qcow2", referrer: referrer, subject: subject, reason: reason).message
  }

  @Test func messagesNameTheWholeWay() {
    #expect(
      error(.backingFile("base.qcow2"), .open(.noEntry))
        == "vm.qcow2: backing file \"base.qcow2\": cannot open: "
        + "No such file or directory (ENOENT)")
    #expect(
      error(.backingFile("base"), .formatMissing, referrer: "/img/mid.qcow2")
        == "vm.qcow2: backing file \"/img/mid.qcow2\": backing file \"base\": "
        + "specified without backing format, and the format is never guessed: "
        + "give it with --backing-format raw or --backing-format qcow2")
    #expect(
      error(.dataFile("nbd://h/x"), .protocolName("nbd"))
        == "vm.qcow2: data file \"nbd://h/x\": protocol \"nbd\" is not supported, only paths are")
    #expect(error(.image, .notAFile) == "vm.qcow2: neither a regular file nor a block device")
  }
}
