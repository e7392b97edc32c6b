import ArgumentParser
import ImageJobs
import DiskImages

/// Runs a copy for a command.
struct CopyRun {
  /// `-p`.
  var progress = false
  /// `-q`.
  var isQuiet = false
  /// In bytes a second; 0 for none.
  var rateLimit: UInt64 = 0

  /// Copies, and shows how far that has come.
  ///
  /// - Throws: The exit status, after an error line.
  func run(
    _ job: ConvertJob, from sources: [(format: DiskFormat, options: DiskImageOptions)],
    to target: ConvertTarget
  ) throws {
    var runner = JobRunner()
    runner.showsProgress = progress
    runner.isQuiet = isQuiet
    runner.rateLimit = rateLimit
    try runner.watched(target.options.name) { (context: JobContext<NoValue>) in
      do throws(ConvertFailure) {
        try ConvertHost.run(job, from: sources, to: target, context)
      } catch {
        throw ToolOutput.fail(error.image, error.error)
      }
    } take: { _ in
    }
  }

  /// Says in an error line why a command cannot be carried out.
  static func refuse(_ name: String, _ text: String) -> ExitCode {
    ToolOutput.note(name, text)
    return ExitCode(1)
  }
}
