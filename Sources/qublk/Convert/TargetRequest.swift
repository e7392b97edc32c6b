import ArgumentParser
import DiskImages
import HostFiles
import ImageJobs
import QCOW2Codec
import QCOW2Tools

/// The target of `convert` and `dd`, as the command line has it.
struct TargetRequest {
  let name: String
  /// The word of `-O`.
  var format: String?
  /// Those of `-o`.
  var options: [String] = []
  var backing: String?
  var backingFormat: String?
  var cache = "unsafe"
  /// Nothing is made.
  var isThere = false
  /// The name is a list of options.
  var isOptions = false

  /// The target has a backing file, by whatever option.
  var hasBacking: Bool {
    if isThere { return backing != nil }
    let names = options.flatMap { DiskOpening.pairs($0) }.map(\.name)
    return backing != nil || names.contains("backing_file")
  }

  /// The target, and how it is made.
  ///
  /// - Throws: The exit status, after an error line.
  func target(_ naming: ImageNaming) throws -> ConvertTarget {
    var targetNaming = naming
    targetNaming.imageOpts = isOptions
    // Passphrases that have no name are those of the sources.
    targetNaming.secrets.secretFile = []
    targetNaming.secrets.secretFd = []
    targetNaming.secrets.secretKeyring = []
    var access = NamedImage.Access()
    access.isReadOnly = false
    access.cache = cache
    let image = try NamedImage(
      name, format: isOptions ? nil : format ?? "raw", targetNaming, access)
    var target = ConvertTarget(format: image.format, options: image.options)
    target.syncs = cache != "unsafe"
    if isThere {
      if !options.isEmpty {
        ToolOutput.note(name, "warning: -o has no effect when skipping image creation")
      }
      return target
    }
    return try made(target, naming.objects.read())
  }

  private func made(_ target: ConvertTarget, _ objects: [ObjectSecret]) throws -> ConvertTarget {
    var target = target
    let path = target.options.path
    do throws(ToolError) {
      if target.format == .raw {
        if hasBacking || backingFormat != nil { throw .option(.unknown("backing_file")) }
        let raw = try RawCreateOptions(lists: options, copySize: 0)
        let preallocation = raw.preallocation ?? .off
        target.isPreallocated = preallocation != .off
        target.make = { (size) throws(JobError) in
          var raw = raw
          // Its length is what says that it is complete, so that comes last.
          raw.size = preallocation == .off ? 0 : size
          do throws(ToolError) {
            try RawCreate.run(raw, path: path, lock: ToolLock.writer)
          } catch { throw .file(error) }
        }
        return target
      }
    } catch { throw ToolOutput.fail(name, error) }
    return try image(target, objects)
  }

  /// An image of clusters.
  private func image(_ target: ConvertTarget, _ objects: [ObjectSecret]) throws -> ConvertTarget {
    var target = target
    let path = target.options.path
    let created = try createOptions(path)
    var passphrase: Secret?
    if let encryption = created.encryption {
      guard let id = encryption.secretID, let secret = objects.secret(id) else {
        throw ToolOutput.fail(name, .option(.passphraseMissing))
      }
      passphrase = secret
      target.options.secrets = LayerSecrets(byLayer: [0: secret])
    }
    target.make = { [passphrase] (size) throws(JobError) in
      var created = created
      created.size = size
      do throws(ToolError) {
        try ImageCreate.run(
          created, path: path, passphrase: passphrase, isIncomplete: true, lock: ToolLock.writer)
      } catch { throw .file(error) }
    }
    return target
  }

  private func createOptions(_ path: String) throws -> CreateOptions {
    do throws(ToolError) {
      // The size is that of the sources, whatever the options say.
      let size = { (backing: String, format: String) throws(ToolError) -> UInt64 in
        try BackingSize.read(backing, format: format, image: path, lock: ToolLock.reader)
      }
      let hasSize = options.contains { list in
        DiskOpening.pairs(list).contains { $0.name == "size" }
      }
      return try CreateOptions(
        lists: options, size: hasSize ? nil : "0", backingFile: backing,
        backingFormat: backingFormat, backingSize: size)
    } catch { throw ToolOutput.fail(name, error) }
  }
}
