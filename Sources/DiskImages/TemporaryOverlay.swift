import BlockCore
import Glibc
package import QCOW2Tools

/// An empty image over another one, whose name is gone as soon as it is open: what is written is thrown
/// away.
package struct TemporaryOverlay {
  private let directory: String
  private var path: String { "\(directory)/overlay.qcow2" }

  /// Makes the overlay in `$TMPDIR`, /var/tmp by default, and has it opened in place of the disk.
  ///
  /// - Throws: Why it cannot be made; nothing is left behind.
  package init(over opening: inout DiskOpening) throws(ToolError) {
    let format = opening.format ?? .qcow2
    let base: String
    do throws(Errno) { base = try FilePath.real(opening.path ?? "") } catch {
      throw .host(.open, errno: error)
    }
    let size = try BackingSize.read(
      base, format: format.rawValue, image: "", lock: ToolLock.reader)
    var options = CreateOptions(size: size)
    options.backingFile = base
    options.backingFormat = format.rawValue
    directory = try Self.makeDirectory()
    do throws(ToolError) { try ImageCreate.run(options, path: path) } catch {
      remove()
      throw error
    }
    opening.lower(below: path, format)
  }

  private static func makeDirectory() throws(ToolError) -> String {
    let parent = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/var/tmp"
    // mkdtemp writes the name into its argument.
    var name = Array("\(parent)/qublk-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&name) != nil else { throw .host(.create, errno: Errno(errno)) }
    return String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// Removes the names; an overlay that is open lives on until it is closed.
  package func remove() {
    _ = unsafe unlink(path)
    _ = unsafe rmdir(directory)
  }
}
