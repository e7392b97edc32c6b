import TestTools
import Testing

/// `info` with each of its options, beside qemu-img.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct InfoTwinTests {
  @Test func aPlainInfoIsTheSame() throws {
    for sample in Sample.tried {
      try Twin.read(["info", Sample.name], sample)
      try Twin.read(["info", "--output=json", Sample.name], sample)
    }
  }

  @Test func theChainIsTheSame() throws {
    for sample in Sample.some(6, 1, { $0.backing != .none }) {
      try Twin.read(["info", "--backing-chain", Sample.name], sample)
      try Twin.read(["info", "--backing-chain", "--output", "json", "./\(Sample.name)"], sample)
    }
  }

  @Test func limitsAreTheSame() throws {
    for sample in Sample.some(8, 2) {
      try Twin.read(["info", "--limits", Sample.name], sample)
      try Twin.read(["info", "--limits", "--output=json", "--cache=none", Sample.name], sample)
    }
  }

  @Test func optionsAreTakenInAllForms() throws {
    let sample = try #require(Sample.some(1, 3, { $0.cipher == .plain }).first)
    let json = "json:{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", "
    for words in [
      ["-f", "qcow2", Sample.name], ["-fqcow2", Sample.name], ["--format=qcow2", Sample.name],
      ["-U", Sample.name], ["--force-share", Sample.name], ["-t", "writeback", Sample.name],
      ["--image-opts", sample.options],
      ["--image-opts", "driver=qcow2,file.driver=file,file.filename=\(Sample.name)"],
      [json + "\"filename\": \"\(Sample.name)\"}}"], ["-f", "raw", Sample.name],
      ["-f", "raw", "--output=json", Sample.name], ["-t", "directsync", "--limits", Sample.name],
    ] {
      try Twin.read(["info"] + words, sample)
    }
  }

  @Test func rawImagesAreTheSame() throws {
    for sample in Sample.some(3, 4, { $0.backing == .raw || $0.backing == .chain }) {
      try Twin.read(["info", "base.raw"], sample)
      try Twin.read(["info", "--output=json", "--backing-chain", "base.raw"], sample)
      try Twin.read(["info", "--limits", "-f", "raw", "base.raw"], sample)
    }
  }

  @Test func secretsAreTaken() throws {
    for sample in Sample.some(2, 5, { $0.cipher != .plain }) {
      // qemu-img calls an image that was given with such options by all of them.
      let likeness = Likeness(ignoring: ["filename"])
      try Twin.read(["info", "--output=json"] + sample.named, sample, likeness)
    }
  }

  @Test func whatIsWrongEndsTheSame() throws {
    let sample = try #require(Sample.all.first)
    for words in [
      ["nosuch"], [], ["-f", "nosuch", Sample.name], ["--output=yaml", Sample.name],
      ["-t", "nosuch", Sample.name], ["--nosuch", Sample.name], [Sample.name, "another"],
      ["--image-opts", "-f", "qcow2", sample.options], ["-f", "qcow2", "image.none"], ["-h"],
    ] {
      let likeness = Likeness(comparesOutput: false)
      try Twin.read(["info"] + words, sample, likeness)
    }
  }
}
