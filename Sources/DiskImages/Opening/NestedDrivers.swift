/// Options with a format driver below another: "file.driver=qcow2" instead of the driver of a file.
///
/// A raw node shows what is below it as it is, so two drivers of which one is raw are one.
enum NestedDrivers {
  typealias Option = (name: String, value: String)

  /// The same options with one driver above the file.
  ///
  /// - Throws: ``OpeningError`` for an image inside the disk of another image, and for more than one way
  ///   to say a thing.
  static func flatten(_ options: [Option]) throws(OpeningError) -> [Option] {
    var options = options
    while let inner = value("file.driver", in: options), ["raw", "qcow2"].contains(inner) {
      let outer = value("driver", in: options)
      if inner == "raw" {
        // The file below takes the place of the raw node.
        options = options.filter { $0.name != "file.driver" }.map { lift($0, from: "file.file.") }
      } else if outer == "raw" {
        options = options.filter { $0.name != "driver" }.map { lift($0, from: "file.") }
      } else {
        throw OpeningError(
          "option \"file.driver\" is \"qcow2\" below driver \"\(outer ?? "qcow2")\", expected \"raw\" as "
            + "one of the two: an image inside the disk of another is opened by way of a device, "
            + "see qublk add")
      }
    }
    return options
  }

  private static func value(_ name: String, in options: [Option]) -> String? {
    options.last { $0.name == name }?.value
  }

  /// Takes one "file." off a name that begins with `prefix`.
  private static func lift(_ option: Option, from prefix: String) -> Option {
    guard option.name.hasPrefix(prefix) else { return option }
    return (String(option.name.dropFirst("file.".count)), option.value)
  }
}
