package import JSON
package import QCOW2Codec
package import QCOW2Tools

/// A smaller file for an image that nobody has open: `compact`.
///
/// A file job: every reference to a cluster changes, those of snapshots and bitmaps too, which no engine
/// knows of.
package struct CompactJob: FileJob {
  package static let name = "compact"
  package var changesImage: Bool { !isTrial }
  /// Nothing changes: the job only says what would be gained.
  package var isTrial: Bool
  /// What unlocks an image that is encrypted by LUKS; requests carry none.
  package var secret: Secret?

  /// The job.
  package init(isTrial: Bool = false, secret: Secret? = nil) {
    self.isTrial = isTrial
    self.secret = secret
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    throw .arguments("\"compact\" is for images that nobody has open")
  }

  package var arguments: JSONValue { .object([]) }

  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> ImageCompact.Outcome {
    try await context.checkpoint()
    let cancellation = context.cancellation
    let watch = ImageCompact.Watch(begin: { context.progress.begin($0, .bytes) }) {
      (bytes) throws(ToolError) in
      context.progress.advance(by: bytes)
      if cancellation.isCancelled { throw .cancelled }
    }
    let compact = ImageCompact(file.bytes, secret: secret, watch: watch)
    do throws(ToolError) { return try isTrial ? compact.estimate() : compact.run() } catch {
      if case .cancelled = error { throw .cancelled }
      throw .file(error)
    }
  }
}

extension ImageCompact.Outcome: JobValue {
  package var json: JSONValue { .object(members) }

  /// What the outcome says, without what says which image it is.
  private var members: [JSONValue.Member] {
    [
      .init("bytes-before", .number(before)), .init("bytes-after", .number(after)),
      .init("bytes-moved", .number(moved)), .init("block-device", .bool(isBlockDevice)),
    ]
  }

  package init?(json: JSONValue) {
    guard let before = json["bytes-before"]?.unsigned, let after = json["bytes-after"]?.unsigned,
      let moved = json["bytes-moved"]?.unsigned, let isDevice = json["block-device"]?.bool
    else { return nil }
    self.init(before: before, after: after, moved: moved, isBlockDevice: isDevice)
  }

  /// The JSON object, with a line break.
  package func jsonText(path: String) -> String {
    let file: [JSONValue.Member] = [
      .init("filename", .string(path)), .init("format", .string("qcow2")),
    ]
    return JSONValue.object(file + members).qemuText + "\n"
  }

  /// The text for people, with line breaks; `isTrial` if nothing has changed.
  package func humanText(isTrial: Bool) -> String {
    let end = isBlockDevice ? "end of the image on the block device" : "file"
    guard after < before else {
      return "The \(end) stays at \(before) bytes: nothing is to be gained.\n"
    }
    var text = "The \(end) \(isTrial ? "could go" : "went") from \(before) to \(after) bytes"
    text += isTrial ? ".\n" : "; \(moved) bytes were moved.\n"
    if isBlockDevice { text += "A block device keeps its length: nothing was cut.\n" }
    return text
  }
}
