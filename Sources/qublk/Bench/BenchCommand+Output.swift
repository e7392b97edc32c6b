import ArgumentParser
import Bench
import BlockCore
import Daemon
import Glibc
import HostFiles
import JSON
import Reports

extension BenchCommand {
  /// Says what is going to happen, in the words of qemu-img bench as far as it has them.
  func announce(_ options: BenchOptions) {
    let kind =
      switch options.readPercent {
      case 100: "read"
      case 0: "write"
      default: "\(options.readPercent):\(100 - options.readPercent) read and write"
      }
    let number = options.count.map { "\($0) " } ?? ""
    let place =
      options.isRandom
      ? "random offsets from \(options.offset) on, step size \(options.stepSize), seed \(options.seed)"
      : "starting at offset \(options.offset), step size \(options.stepSize)"
    let queues = options.queues == 1 ? "" : " on each of \(options.queues) queues"
    say(
      "Sending \(number)\(kind) requests, \(options.bufferSize) bytes each, \(options.depth) in "
        + "parallel\(queues) (\(place))\n")
    if options.flushInterval > 0 {
      say("Sending flush every \(options.flushInterval) requests\n")
    }
  }

  /// The closing line, or the whole report.
  func tell(_ report: BenchReport) throws(CommandError) {
    if json {
      guard writeAll(STDOUT_FILENO, report.json.text + "\n") else { throw .output(Errno(errno)) }
      return
    }
    if isQuiet { return }
    let seconds = Double(report.result.nanoseconds) / 1e9
    if report.options.count == nil {
      let total = report.result.total
      say("Completed \(total[.read].requests + total[.write].requests) requests.\n")
    }
    say("Run completed in \(JSONValue.decimalText(seconds, digits: 3)) seconds.\n")
  }

  private func say(_ text: String) { _ = writeAll(STDOUT_FILENO, text) }
}
