import Daemon
import DiskImages
import QCOW2Engine

/// What engines have found wrong in the images of a command: told once, when the command fails.
///
/// A request that meets damage ends with an errno, and so does the command. The engine knows which entry
/// of which table it was.
enum DamageNotes {
  private static let events = ImageEvents()

  /// Has the engines of a disk report.
  static func collect(from options: inout DiskImageOptions) { options.events = events }

  /// Writes a line to standard error about the first damage that was found, if any was.
  static func write() {
    if let event = events.summary[.damaged].first { ToolOutput.complain(event.text) }
  }
}
