package import JSON
package import QCOW2Tools

/// Other options for an image that nobody has open: `amend`.
///
/// A file job: the version of an image and the width of its refcounts say how an engine reads it, so they
/// cannot change while one has it open. What can, a daemon changes by ``LiveAmendJob``. The size, which
/// `amend` takes too, is ``ResizeJob``'s.
package struct AmendJob: FileJob {
  package static let name = "amend"
  package var changesImage: Bool { true }
  /// What is to change.
  package var options: AmendOptions
  /// The change of key slots; requests carry none, since it has passphrases in it.
  package var keySlots: KeySlotChange?
  /// Nothing changes: the job only says whether it could be done.
  package var isTrial: Bool

  /// The job.
  package init(_ options: AmendOptions, keySlots: KeySlotChange? = nil, isTrial: Bool = false) {
    self.options = options
    self.keySlots = keySlots
    self.isTrial = isTrial
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    let version = try arguments.unsigned("version")
    guard version == nil || version == 2 || version == 3 else {
      throw .arguments("argument \"version\" is \(version ?? 0), expected 2 or 3")
    }
    options = AmendOptions()
    options.version = version.map { UInt32($0) }
    options.refcountOrder = try arguments.value("refcount-bits", "1, 2, 4, 8, 16, 32 or 64") {
      guard let bits = $0.unsigned, bits.nonzeroBitCount == 1, bits <= 64 else { return nil }
      return bits.trailingZeroBitCount
    }
    options.lazyRefcounts = try arguments.bool("lazy-refcounts")
    options.dataFile = try arguments.string("data-file")
    options.hasRawDataFile = try arguments.bool("data-file-raw")
    options.backingFile = try arguments.string("backing-file")
    options.backingFormat = try arguments.string("backing-format")
    isTrial = try arguments.bool("trial") ?? false
  }

  package var arguments: JSONValue {
    let members: [(String, JSONValue?)] = [
      ("version", options.version.map { .number(UInt64($0)) }),
      ("refcount-bits", options.refcountOrder.map { .number(1 << UInt64($0)) }),
      ("lazy-refcounts", options.lazyRefcounts.map { .bool($0) }),
      ("data-file", options.dataFile.map { .string($0) }),
      ("data-file-raw", options.hasRawDataFile.map { .bool($0) }),
      ("backing-file", options.backingFile.map { .string($0) }),
      ("backing-format", options.backingFormat.map { .string($0) }),
      ("trial", isTrial ? .bool(true) : nil),
    ]
    return .object(members.compactMap { name, value in value.map { .init(name, $0) } })
  }

  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    let cancellation = context.cancellation
    let amend = ImageAmend(file.bytes, options) { () throws(ToolError) in
      context.progress.advance(by: 1)
      if cancellation.isCancelled { throw .cancelled }
    }
    do throws(ToolError) {
      if isTrial {
        try amend.check()
        return NoValue()
      }
      context.progress.begin(ImageAmend.steps, .steps)
      // What is refused is refused before anything changes.
      try amend.check()
      try keySlots?.run(file.bytes)
      try amend.run()
      context.progress.reach(ImageAmend.steps)
    } catch {
      if case .cancelled = error { throw .cancelled }
      throw .file(error)
    }
    return NoValue()
  }
}
