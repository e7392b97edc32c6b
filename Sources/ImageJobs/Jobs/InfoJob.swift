package import JSON
package import QCOW2Tools

/// What an image is: `info`.
package struct InfoJob: FileJob {
  package static let name = "info"
  package var changesImage: Bool { false }
  /// What the answer calls the image; nil for what the host knows it by.
  package var filename: String?

  /// The job.
  package init(filename: String? = nil) { self.filename = filename }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    filename = try arguments.string("filename")
  }

  package var arguments: JSONValue {
    .object(filename.map { [.init("filename", .string($0))] } ?? [])
  }

  /// What is not shown, and why, is told as notes.
  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> ImageInfoReport {
    try await context.checkpoint()
    do throws(ToolError) {
      let info = try ImageInfo(
        reading: file.bytes, path: filename ?? file.path,
        allocatedBytes: file.bytes.allocatedBytes)
      for warning in info.warnings { context.tell(.note(warning)) }
      return info.report
    } catch { throw .file(error) }
  }
}

extension ImageInfoReport: JobValue {}
