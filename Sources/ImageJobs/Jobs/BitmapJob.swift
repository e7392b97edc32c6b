import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine

/// Changes of the persistent bitmaps of an image, one after the other: `qublk bitmap`.
///
/// Each is durable before the next begins. If one fails, those before it have been made.
package struct BitmapJob: DiskJob {
  /// One change of the bitmap that ``bitmap`` names.
  package enum Action: Equatable, Sendable {
    /// In bytes; nil for QEMU's standard.
    case add(granularity: UInt64?)
    case remove, clear, enable, disable
    /// Of every bitmap of the image.
    case removeAll
    /// Adds the bits of a bitmap of the image, or of ``BitmapJob/source``.
    case merge(String)

    /// What requests and messages call it.
    package var name: String {
      switch self {
      case .add: "add"
      case .remove: "remove"
      case .removeAll: "remove-all"
      case .clear: "clear"
      case .enable: "enable"
      case .disable: "disable"
      case .merge: "merge"
      }
    }
  }

  /// Another image, whose bitmaps are merged.
  package struct Source: Equatable, Sendable {
    /// An absolute path, since a daemon may open it.
    package var path: String

    /// An image.
    package init(path: String) { self.path = path }
  }

  package static let name = "bitmap"
  package var changesImage: Bool { true }
  package var openedByName: String? { source?.path }
  /// Empty if all actions are ``Action/removeAll``.
  package var bitmap: String
  /// In the order in which they are carried out.
  package var actions: [Action]
  /// Where the bitmaps of ``Action/merge(_:)`` are; nil for the image itself.
  package var source: Source?

  /// The job.
  package init(_ actions: [Action], of bitmap: String, source: Source? = nil) {
    self.bitmap = bitmap
    self.actions = actions
    self.source = source
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    bitmap = try arguments.string("bitmap") ?? ""
    source = try arguments.string("source-file").map(Source.init)
    actions = []
    for value in try arguments.array("actions") ?? [] {
      var members = try JobArguments(value)
      actions.append(try Action(&members))
      try members.finish()
    }
  }

  package var arguments: JSONValue {
    var members = [
      JSONValue.Member("bitmap", .string(bitmap)),
      .init("actions", .array(actions.map(\.json))),
    ]
    if let source { members.append(.init("source-file", .string(source.path))) }
    return .object(members)
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    guard let image = (disk as? DiskImage)?.engine else { throw .format(needed: .qcow2) }
    guard let source else {
      try await run(on: image, from: nil, context)
      return NoValue()
    }
    let other = try await Self.open(source)
    let outcome: Result<Void, JobError>
    do throws(JobError) {
      outcome = .success(try await run(on: image, from: other.engine, context))
    } catch { outcome = .failure(error) }
    // Nothing was written there.
    try? await other.close()
    try outcome.get()
    return NoValue()
  }

  private func run(
    on image: Image, from other: Image?, _ context: JobContext<NoValue>
  ) async throws(JobError) {
    context.progress.begin(UInt64(actions.count), .steps)
    for action in actions {
      try await context.checkpoint()
      do throws(ImageError) {
        try await image.changeBitmaps(change(action, from: other))
      } catch {
        guard case .bitmapRefused(let refusal) = error else { throw .image(error) }
        throw .arguments(
          "Operation \(action.name) on bitmap \(bitmap) failed: \(refusal.text)")
      }
      context.progress.advance(by: 1)
    }
  }

  private func change(_ action: Action, from other: Image?) -> BitmapChange {
    switch action {
    case .add(let granularity): .add(bitmap, granularity: granularity)
    case .remove: .remove(bitmap)
    case .removeAll: .removeAll
    case .clear: .clear(bitmap)
    case .enable: .enable(bitmap)
    case .disable: .disable(bitmap)
    case .merge(let source):
      .merge(into: bitmap, from: other.map { .image($0, source) } ?? .own(source))
    }
  }

  private static func open(_ source: Source) async throws(JobError) -> DiskImage {
    var options = DiskImageOptions(path: source.path)
    options.readOnly = true
    do throws(DiskImageError) { return try await DiskImage.open(options) } catch {
      throw .open(error)
    }
  }
}

extension BitmapJob.Action {
  fileprivate var json: JSONValue {
    var members = [JSONValue.Member("action", .string(name))]
    switch self {
    case .add(let granularity?): members.append(.init("granularity", .number(granularity)))
    case .merge(let source): members.append(.init("source", .string(source)))
    default: break
    }
    return .object(members)
  }

  fileprivate init(_ arguments: inout JobArguments) throws(JobError) {
    switch try arguments.string("action") {
    case "add": self = .add(granularity: try arguments.unsigned("granularity"))
    case "remove": self = .remove
    case "remove-all": self = .removeAll
    case "clear": self = .clear
    case "enable": self = .enable
    case "disable": self = .disable
    case "merge":
      guard let source = try arguments.string("source") else {
        throw .arguments("argument \"source\" of action \"merge\" is missing")
      }
      self = .merge(source)
    case let name:
      throw .arguments("action \"\(name ?? "")\" of a bitmap is not known")
    }
  }
}
