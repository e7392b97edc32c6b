import HostFiles
import QCOW2Codec

/// `--image-opts`: an image described by KEY=VALUE,… in QEMU's language, as far as it is a qcow2
/// image in a file.
///
/// Known are `driver`, `file.driver`, `file.filename`, `encrypt.format`, `encrypt.key-secret`,
/// `data-file.driver`, `data-file.filename`, `read-only`, `force-share`, `cache.direct`, and with
/// `backing.` in front, any number of times, `driver` and `encrypt.key-secret`. Everything else is
/// refused by name.
package enum ImageOptionText {
  /// The options for an image: `text` is what stands after `--image-opts`, `secrets` what
  /// `--object` gave.
  package static func parse(
    _ text: String, secrets: [ObjectSecret] = []
  ) throws(OptionTextError) -> DiskImageOptions {
    do throws(OptionTextError.Problem) {
      var list = try KeyValueList(parsing: text)
      guard try list.take("driver", among: ["qcow2"]) != nil else {
        throw .missing(key: "driver")
      }
      _ = try list.take("file.driver", among: ["file", "host_device"])
      guard let path = list.take("file.filename") else { throw .missing(key: "file.filename") }
      var options = DiskImageOptions(path: path)
      try takeAccess(&list, &options)
      try takeDataFile(&list, &options)
      try takeLayers(&list, &options, secrets)
      try list.requireNothingElse()
      return options
    } catch { throw OptionTextError(option: "--image-opts", problem: error) }
  }

  private static func takeAccess(
    _ list: inout KeyValueList, _ options: inout DiskImageOptions
  ) throws(OptionTextError.Problem) {
    options.readOnly = try list.takeSwitch("read-only") ?? false
    if try list.takeSwitch("force-share") ?? false { options.locks = .none }
    options.mode = try list.takeSwitch("cache.direct") ?? false ? .direct : .buffered
  }

  private static func takeDataFile(
    _ list: inout KeyValueList, _ options: inout DiskImageOptions
  ) throws(OptionTextError.Problem) {
    _ = try list.take("data-file.driver", among: ["file", "host_device"])
    options.dataFile = list.take("data-file.filename")
  }

  /// Formats and secrets of the image and of what is below it.
  private static func takeLayers(
    _ list: inout KeyValueList, _ options: inout DiskImageOptions, _ secrets: [ObjectSecret]
  ) throws(OptionTextError.Problem) {
    var found: [Int: Secret] = [:]
    options.encryption = try list.take("encrypt.format", among: ["aes", "luks"])
      .flatMap(DiskImageOptions.Encryption.init)
    var prefix = ""
    for layer in 0...Chain.depthLimit {
      if layer > 0 {
        prefix += "backing."
        guard let driver = try list.take(prefix + "driver", among: ["raw", "qcow2"]) else {
          break
        }
        options.backingFormats += BackingFormat(rawValue: driver).map { [$0] } ?? []
      }
      guard let id = list.take(prefix + "encrypt.key-secret") else { continue }
      guard let secret = secrets.secret(id) else { throw .noSuchSecret(id: id) }
      found[layer] = secret
    }
    options.secrets = LayerSecrets(byLayer: found)
  }
}
