import ArgumentParser
import Daemon

/// `--on-enospc`: fail, hold or hold:SECONDS.
extension NoSpacePolicy: ExpressibleByArgument {
  private static let secondsLimit = 1_000_000

  package init?(argument: String) {
    switch argument {
    case "fail": self = .fail
    case "hold": self = .hold(seconds: nil)
    default:
      guard argument.hasPrefix("hold:"), let seconds = Int(argument.dropFirst(5)),
        (1...Self.secondsLimit).contains(seconds)
      else { return nil }
      self = .hold(seconds: seconds)
    }
  }

  package var defaultValueDescription: String {
    switch self {
    case .fail: "fail"
    case .hold(nil): "hold"
    case .hold(let seconds?): "hold:\(seconds)"
    }
  }
}
