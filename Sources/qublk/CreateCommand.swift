import ArgumentParser
import QCOW2Tools

/// `qublk create`: a new, empty image, in qemu-img's language.
struct CreateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Create an empty qcow2 image.",
    discussion: """
      Options for -o, as a comma list: cluster_size, compat, refcount_bits, lazy_refcounts, \
      preallocation (off, metadata, falloc, full), size. Sizes may end in k, M, G, T, P or E.
      """)

  @Flag(name: .short, help: "Print nothing.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(name: .customShort("o"), help: "Options, as name=value,name=value.")
  var options: [String] = []
  @Option(name: .customShort("b"), help: .hidden) var backingFile: String?
  @Option(name: .customShort("F"), help: .hidden) var backingFormat: String?
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
    do throws(OptionError) {
      guard format == "qcow2" else {
        throw .badValue(name: "-f", found: format, allowed: "qcow2")
      }
      if backingFile != nil { throw .notSupportedYet("-b") }
      if backingFormat != nil { throw .notSupportedYet("-F") }
      return try CreateOptions(lists: options, size: size)
    } catch {
      throw ToolOutput.fail(file, .option(error))
    }
  }
}
