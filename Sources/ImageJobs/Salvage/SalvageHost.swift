package import DiskImages
import JSON
package import QCOW2Engine
import QCOW2Format
package import QCOW2Tools
import Uring

/// What is to be read of a destroyed image, and how.
package struct SalvageRequest: Sendable {
  /// The image; only path, name, locks, data file and secrets count.
  package var image: DiskImageOptions
  /// What the user says of the image.
  package var options: SalvageOptions
  package var snapshot: SnapshotSelector?
  /// The backing file is left out: what it has counts as lost.
  package var ignoresBacking = false

  package init(_ image: DiskImageOptions, _ options: SalvageOptions) {
    self.image = image
    self.options = options
  }
}

/// What was read, and what was not.
package struct SalvageReport: Equatable, Sendable {
  /// The bytes of the disk.
  package let size: UInt64
  /// In the order of the disk.
  package let losses: [Loss]
  /// What could not be used of the header and the tables, and what stood in for it.
  package let notes: [String]

  /// The bytes that are zeros because they could not be read.
  package var lostBytes: UInt64 { losses.reduce(0) { $0 + UInt64($1.range.count) } }

  /// The JSON object, with a line break.
  package func jsonText(path: String) -> String {
    JSONValue.object([
      .init("filename", .string(path)), .init("size", .number(size)),
      .init("lost-bytes", .number(lostBytes)),
      .init(
        "lost",
        .array(
          losses.map {
            .object([
              .init("start", .number($0.range.lowerBound)),
              .init("length", .number(UInt64($0.range.count))),
              .init("reason", .string($0.reason.text)),
            ])
          })), .init("notes", .array(notes.map { .string($0) })),
    ]).qemuText + "\n"
  }

  /// The text for people, with line breaks.
  package var humanText: String {
    var text = notes.map { "note: \($0)\n" }.joined()
    for loss in losses {
      text += "lost: \(loss.range.count) bytes at \(loss.range.lowerBound): \(loss.reason.text)\n"
    }
    if losses.isEmpty { return text + "All \(size) bytes of the disk were read.\n" }
    return text + "\(lostBytes) of \(size) bytes of the disk are lost, and zeros in the output.\n"
  }
}

/// Copies what is readable of a destroyed image: `salvage`.
///
/// Nothing is ever written to the image.
package enum SalvageHost {
  /// Carries a copy out.
  ///
  /// - Throws: ``ConvertFailure``, if nothing of the image can be read or the target cannot be written.
  package static func run(
    _ request: SalvageRequest, to target: ConvertTarget, _ context: JobContext<NoValue>
  ) throws(ConvertFailure) -> SalvageReport {
    let image = request.image
    var notes: [String] = []
    let reader: SalvageReader
    let file: FileBytes
    do throws(ToolError) {
      file = try FileBytes(
        path: image.path, access: .readOnly,
        lock: image.locks == .qemu ? ToolLock.reader : ToolLock.none)
      if let key = FileIdentity(path: target.options.path),
        key == FileIdentity(descriptor: file.descriptor)
      {
        throw .salvage(.targetIsSource)
      }
      reader = try open(request, file, &notes)
    } catch { throw ConvertFailure(image.name, .file(error)) }
    let backing = openBacking(request, reader, &notes)
    let losesBacking = reader.hasBackingFile && backing == nil
    let disk = SalvageDisk(
      reader, name: image.name, backing: backing, losesBacking: losesBacking)
    var job = ConvertJob()
    // One request at a time: a disk that is dying is read from the start to the end.
    job.requests = 1
    job.targetIsZero = target.format == .qcow2 || !target.isDevice
    defer { runBlocking { () in try? await disk.close() } }
    try ConvertHost.copy(job, from: [disk], to: target, context)
    return SalvageReport(size: reader.size, losses: reader.losses, notes: reader.notes + notes)
  }

  private static func open(
    _ request: SalvageRequest, _ file: FileBytes, _ notes: inout [String]
  ) throws(ToolError) -> SalvageReader {
    let selector = request.snapshot
    var surroundings = SalvageReader.Surroundings(
      secret: request.image.secrets.first,
      snapshot: selector.map { selector in { selector.first(in: $0) } })
    let first = try SalvageReader(file, request.options, surroundings)
    guard first.hasDataFile else { return first }
    guard let name = request.image.dataFile ?? first.dataFileName else {
      notes.append("the data file has no name: give it with data-file.filename in --image-opts")
      return first
    }
    // As QEMU does: a relative name counts from the current directory.
    let path = FileReference.commandLinePath(name)
    do throws(ToolError) {
      surroundings.dataFile = try FileBytes(path: path, access: .readOnly)
    } catch {
      notes.append("data file \"\(name)\": \(error.message)")
      return first
    }
    return try SalvageReader(file, request.options, surroundings)
  }

  /// Opens the backing file; nil if there is none, or it cannot be used.
  private static func openBacking(
    _ request: SalvageRequest, _ reader: SalvageReader, _ notes: inout [String]
  ) -> (any OpenDisk)? {
    guard reader.hasBackingFile, !request.ignoresBacking else { return nil }
    guard let name = reader.backingFile else {
      notes.append("the name of the backing file cannot be read")
      return nil
    }
    do throws(OpeningError) {
      return try openBacking(name, reader.backingFormat, of: request.image)
    } catch {
      notes.append("backing file \"\(name)\": \(error.text)")
      return nil
    }
  }

  private static func openBacking(
    _ name: String, _ format: String?, of image: DiskImageOptions
  ) throws(OpeningError) -> any OpenDisk {
    let reference = FileReference(parsing: name)
    guard case .path(let path) = reference else {
      throw OpeningError(reference.problem ?? "not a path")
    }
    let place = FilePath.combine(image.path, path)
    var opening = DiskOpening()
    opening.isReadOnly = true
    opening.sharesByForce = image.locks == .none
    try opening.setPath(place)
    let named = format.flatMap(DiskFormat.init)
    let found = if let named { named } else { try DiskFormat.probe(place) }
    let options = try opening.diskOptions([])
    do throws(DiskImageError) {
      return try runBlocking { () async throws(DiskImageError) in
        try await found.open(options, size: 0)
      }
    } catch { throw OpeningError(error.message) }
  }
}
