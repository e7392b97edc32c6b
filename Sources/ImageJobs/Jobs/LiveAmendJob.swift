import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine
import QCOW2Format
package import QCOW2Tools

/// `amend` of an image that a device serves: what the engine can change beside the guest.
///
/// That is whether refcounts are lazy. The version, the width of refcounts and the data file say how the
/// engine reads and writes the image: another value of them is refused, with nothing changed. An option that
/// has the value already is no change.
package struct LiveAmendJob: DiskJob {
  package static let name = AmendJob.name
  package var changesImage: Bool { true }
  private let amend: AmendJob

  /// The job.
  package init(_ options: AmendOptions, isTrial: Bool = false) {
    amend = AmendJob(options, isTrial: isTrial)
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    amend = try AmendJob(&arguments)
  }

  package var arguments: JSONValue { amend.arguments }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    guard let image = disk as? DiskImage else { throw .format(needed: .qcow2) }
    try requirePossible(image)
    let wanted = amend.options.lazyRefcounts ?? image.engine.hasLazyRefcounts
    if amend.isTrial || wanted == image.engine.hasLazyRefcounts { return NoValue() }
    context.progress.begin(1, .steps)
    do throws(ImageError) { try await image.engine.setLazyRefcounts(wanted) } catch {
      throw .image(error)
    }
    context.progress.reach(1)
    return NoValue()
  }

  /// Throws for what the image does not allow, and for what cannot change now.
  private func requirePossible(_ image: DiskImage) throws(JobError) {
    let fixed: [String]
    do throws(ToolError) {
      fixed = try ImageAmend.fixedWhileServed(try image.imageBytes(), amend.options)
    } catch { throw .file(error) }
    if fixed.isEmpty { return }
    throw .arguments(
      "\(fixed.joined(separator: ", ")) cannot change while a device shows the disk: detach it first with "
        + "\"qublk del\"")
  }
}
