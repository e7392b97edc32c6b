import QCOW2Tools
import Testing

@Suite struct CreateOptionsTests {
  private func problem(_ lists: [String], _ size: String? = "1M") -> OptionError? {
    do throws(ToolError) {
      _ = try CreateOptions(lists: lists, size: size)
      return nil
    } catch {
      guard case .option(let problem) = error else { return nil }
      return problem
    }
  }

  @Test func aLaterOptionReplacesAnEarlierOne() throws {
    let options = try CreateOptions(
      lists: ["cluster_size=4k,size=1M", "cluster_size=2M,refcount_bits=0x20", "lazy_refcounts"],
      size: nil)
    #expect(options.clusterBits == 21)
    #expect(options.refcountOrder == 5)
    #expect(options.lazyRefcounts)
    #expect(options.size == 1 << 20)
  }

  @Test func theSizeIsRoundedUpToSectors() throws {
    #expect(try CreateOptions(lists: [], size: "1000").virtualSize == 1024)
    #expect(try CreateOptions(lists: [], size: "0").virtualSize == 0)
  }

  @Test func hintsOfQEMUAreTaken() throws {
    #expect(problem(["nocow=on"]) == nil && problem(["extent_size_hint=1M"]) == nil)
  }

  @Test(arguments: [
    ("backing_file=x", OptionConflict.backingFormatMissing),
    ("backing_fmt=raw", .backingFormatAlone), ("backing_file=,backing_fmt=raw", .backingNameEmpty),
    ("data_file_raw=on", .rawDataWithoutFile), ("data_file=x,compat=0.10", .dataFileVersion),
    ("backing_file=x,backing_fmt=raw,data_file=y,data_file_raw=on", .backingWithRawData),
    ("backing_file=x,backing_fmt=raw,preallocation=full", .backingWithPreallocation),
    ("extended_l2=on,compat=v2", .extendedVersion),
    ("extended_l2=on,cluster_size=8k", .extendedClusterSize),
    ("compression_type=zstd,compat=v2", .compressionVersion),
    ("encryption=on,encrypt.format=luks", .encryptionTwice),
    ("encrypt.format=aes,data_file=y,data_file_raw=on", .encryptionWithRawData),
    ("encrypt.format=luks,preallocation=full,compat=v2", .encryptionWithPreallocation),
  ]) func optionsThatExcludeEachOtherAreRefused(options: String, conflict: OptionConflict) {
    #expect(problem([options]) == .conflict(conflict))
  }

  @Test(arguments: [
    ("encrypt.key-secret=k", "encrypt.key-secret", "encrypt.format"),
    ("encrypt.iter-time=5", "encrypt.iter-time", "encrypt.format"),
    ("encrypt.format=aes,encrypt.hash-alg=sha1", "encrypt.hash-alg", "encrypt.format=luks"),
    (
      "encrypt.format=luks,encrypt.ivgen-hash-alg=sha256", "encrypt.ivgen-hash-alg",
      "encrypt.ivgen-alg=essiv"
    ),
  ]) func optionsWithoutTheOneTheyBelongToAreRefused(list: String, option: String, other: String) {
    #expect(problem([list]) == .needs(option: option, other: other))
  }

  @Test(arguments: [
    "encrypt.format=none", "encrypt.cipher-alg=twofish-128", "encrypt.cipher-mode=gcm",
    "encrypt.ivgen-alg=essiv:sha256", "encrypt.hash-alg=crc32", "encrypt.iter-time=-1",
    "encrypt.iter-time=1000001", "encrypt.iter-time=2s", "encryption=aes",
  ]) func badValuesOfEncryptionAreRefused(option: String) throws {
    let list = option.hasPrefix("encrypt.format") ? option : "encrypt.format=luks," + option
    guard case .badValue(let name, let found, _) = problem([list]) else {
      Issue.record("\(String(describing: problem([list])))")
      return
    }
    #expect("\(name)=\(found)" == option)
    #expect(problem(["encrypt.foo=1"]) == .unknown("encrypt.foo"))
  }

  @Test func encryptionThatIsOffIsNone() throws {
    let options = try CreateOptions(lists: ["encryption=off"], size: "1M")
    #expect(options.encryption == nil)
  }

  @Test func namesMustFitTheFirstCluster() {
    let name = String(repeating: "n", count: 400)
    #expect(problem(["cluster_size=512,backing_file=\(name),backing_fmt=raw"]) != nil)
    #expect(problem(["cluster_size=1k,backing_file=\(name),backing_fmt=raw"]) == nil)
    let long = String(repeating: "n", count: 1024)
    #expect(
      problem(["backing_file=\(long),backing_fmt=raw"]) == .nameTooLong(bytes: 1024, allowed: 1023))
  }

  @Test func theDefaultsOfSuchOptionsAreAccepted() {
    #expect(problem(["extended_l2=off,compression_type=zlib"]) == nil)
  }

  @Test(arguments: [
    "cluster_size=256", "cluster_size=4M", "cluster_size=1000", "cluster_size=x",
    "cluster_size=0", "compat=2", "refcount_bits=3", "refcount_bits=128", "refcount_bits=1k",
    "refcount_bits=0", "lazy_refcounts=maybe", "preallocation=some", "compression_type=lz4",
  ]) func badValuesAreRefused(option: String) throws {
    let error = try #require(problem([option]))
    guard case .badValue(let name, let found, _) = error else {
      Issue.record("\(error)")
      return
    }
    #expect("\(name)=\(found)" == option)
  }

  @Test func everythingElseThatIsWrongHasItsOwnError() {
    #expect(problem(["foo=1"]) == .unknown("foo"))
    #expect(problem([], nil) == .sizeMissing)
    #expect(problem(["size=1M"], "1M") == .sizeGivenTwice)
    #expect(problem(["compat=0.10,lazy_refcounts=on"]) == .needsVersion3("lazy_refcounts=on"))
    #expect(problem(["compat=v2,refcount_bits=8"]) == .needsVersion3("refcount_bits=8"))
    #expect(problem([], "9E") != nil)
    #expect(problem([], "-5") != nil)
    #expect(problem(["size=1,,k"], nil) != nil)
  }
}
