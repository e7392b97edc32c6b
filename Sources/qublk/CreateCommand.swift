import ArgumentParser
import QCOW2Tools

/// `qublk create`: a new, empty image, in qemu-img's language.
struct CreateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Create an empty qcow2 image.",
    discussion: """
      Options for -o, as a comma list: cluster_size, compat, refcount_bits, lazy_refcounts, \
      preallocation (off, metadata, falloc, full), extended_l2, compression_type (zlib, zstd), \
      backing_file, backing_fmt (raw, qcow2), data_file, data_file_raw, size. Sizes may end in k, \
      M, G, T, P or E; without one, the image is as large as its backing file.
      """)

  @Flag(name: .short, help: "Print nothing.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(name: .customShort("o"), help: "Options, as name=value,name=value.")
  var options: [String] = []
  @Option(name: .customShort("b"), help: "The backing file, as the image is to name it.")
  var backingFile: String?
  @Option(name: .customShort("F"), help: "The format of the backing file.")
  var backingFormat: String?
  @Flag(name: .customShort("u"), help: "Do not open the backing file.") var unsafeBacking = false
  @Argument(help: "The image file or block device; what it holds is lost.") var file: String
  @Argument(help: "The virtual size.") var size: String?

  func run() throws {
    let created = try createOptions()
    if !quiet { try ToolOutput.write(created.formattingLine(path: file) + "\n") }
    do throws(ToolError) {
      try ImageCreate.run(created, path: file, lock: ToolLock.writer)
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }

  private func createOptions() throws -> CreateOptions {
    do throws(ToolError) {
      guard format == "qcow2" else {
        throw .option(.badValue(name: "-f", found: format, allowed: "qcow2"))
      }
      let size = { (name: String, format: String) throws(ToolError) -> UInt64 in
        guard name != file else { throw .option(.conflict(.backingIsImage)) }
        return try BackingSize.read(name, format: format, image: file, lock: ToolLock.reader)
      }
      return try CreateOptions(
        lists: options, size: self.size, backingFile: backingFile, backingFormat: backingFormat,
        backingSize: unsafeBacking ? nil : size)
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }
}
