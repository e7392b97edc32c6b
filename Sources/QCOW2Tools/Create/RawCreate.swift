import BlockCore
import Glibc

/// What a raw image is to be.
package struct RawCreateOptions: Equatable, Sendable {
  /// In bytes, as asked for.
  package var size: UInt64 = 0
  package var preallocation: Preallocation?
  package var hints = HostFileHints()

  /// Reads the options of the command line.
  ///
  /// - Throws: ``OptionError`` at the first option that cannot be used.
  package init(lists: [String], size: String?) throws(OptionError) {
    let sizeText = try read(lists)
    guard sizeText == nil || size == nil else { throw .sizeGivenTwice }
    guard let text = sizeText ?? size else { throw .sizeMissing }
    self.size = try CreateOptions.parseSize(text)
  }

  /// Reads the options of a copy, which has this size where no option says another.
  ///
  /// - Throws: ``ToolError/option(_:)``.
  package init(lists: [String], copySize: UInt64?) throws(ToolError) {
    do throws(OptionError) {
      let text = try read(lists)
      guard let size = try text.map(CreateOptions.parseSize) ?? copySize else { throw .sizeMissing }
      self.size = size
    } catch { throw .option(error) }
  }

  /// Takes the options over; returns the text of the size, if there is one.
  private mutating func read(_ lists: [String]) throws(OptionError) -> String? {
    var sizeText: String?
    for list in lists {
      for (name, value) in try CreateOptions.split(list) {
        switch name {
        case "size": sizeText = value
        case "preallocation":
          guard let mode = Preallocation(rawValue: value), mode != .metadata else {
            throw .badValue(name: name, found: value, allowed: "off, falloc or full")
          }
          preallocation = mode
        default: if !(try hints.take(name, value)) { throw .unknown(name) }
        }
      }
    }
    return sizeText
  }

  /// The line that qemu-img prints before it creates an image.
  package func formattingLine(path: String) -> String {
    var words = ["fmt=raw", "size=\(size)"]
    if let nocow = hints.nocow { words.append("nocow=\(nocow ? "on" : "off")") }
    if let preallocation { words.append("preallocation=\(preallocation.rawValue)") }
    if let bytes = hints.extentSize { words.append("extent_size_hint=\(bytes)") }
    return "Formatting '\(path)', " + words.joined(separator: " ")
  }
}

/// Makes raw images.
package enum RawCreate {
  /// Fills the file at `path` with zeros; what it held is lost.
  ///
  /// Of a block device only the size is looked at.
  ///
  /// - Parameters:
  ///   - options: What to make.
  ///   - path: A regular file, made if it does not exist, or a block device.
  ///   - lock: Takes the locks of a writer.
  /// - Returns: What was asked for and is not kept, in a line; nil if everything is.
  /// - Throws: ``ToolError``; a file that the create has made is removed again.
  @discardableResult package static func run(
    _ options: RawCreateOptions, path: String, lock: FileBytes.Locker
  ) throws(ToolError) -> String? {
    let length = (options.size + 511) & ~511  // below 2^63
    let file = try FileBytes(path: path, access: .create, lock: lock)
    do throws(ToolError) {
      if file.isBlockDevice {
        guard file.length >= length else {
          throw .deviceTooSmall(needed: length, available: file.length)
        }
        return nil
      }
      // A length that the host cannot have fails before anything is lost.
      try file.setLength(max(file.length, length))
      try file.setLength(0)
      let warning = options.hints.apply(to: file.descriptor)
      try file.setLength(length)
      switch options.preallocation ?? .off {
      case .off, .metadata: break
      case .falloc: try file.allocate(length)
      case .full: try file.writeZeroes(from: HostOffset(0), length: length)
      }
      try file.sync()
      return warning
    } catch {
      if file.isNew { _ = unsafe unlink(path) }
      throw error
    }
  }
}
