package import JSON
package import QCOW2Tools

/// What an image is: `info`.
package struct InfoJob: FileJob {
  package static let name = "info"
  package var changesImage: Bool { false }
  /// What the answer calls the image; nil for what the host knows it by.
  package var filename: String?
  /// The file is the disk itself.
  package var isRaw = false
  /// What the host asks of transfers, if the answer is to have it.
  package var limits: HostLimits?

  /// The job.
  package init(filename: String? = nil, isRaw: Bool = false, limits: HostLimits? = nil) {
    self.filename = filename
    self.isRaw = isRaw
    self.limits = limits
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    filename = try arguments.string("filename")
    isRaw = try arguments.bool("raw") ?? false
    limits = try arguments.value("limits", "an object with alignments", HostLimits.init(json:))
  }

  package var arguments: JSONValue {
    var members: [JSONValue.Member] = []
    if let filename { members.append(.init("filename", .string(filename))) }
    if isRaw { members.append(.init("raw", .bool(true))) }
    if let limits { members.append(.init("limits", limits.json)) }
    return .object(members)
  }

  /// What is not shown, and why, is told as notes.
  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> ImageInfoReport {
    try await context.checkpoint()
    let path = filename ?? file.path
    let stored = file.bytes.allocatedBytes
    if isRaw {
      return ImageInfoReport(raw: path, length: file.bytes.length, stored: stored, limits)
    }
    do throws(ToolError) {
      let info = try ImageInfo(reading: file.bytes, path: path, allocatedBytes: stored)
      for warning in info.warnings { context.tell(.note(warning)) }
      return info.report(limits: limits)
    } catch { throw .file(error) }
  }
}

extension ImageInfoReport: JobValue {}
