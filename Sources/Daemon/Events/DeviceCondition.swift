import QCOW2Engine

/// How a device that is served fares; the raw value is what `list` and `stats` show.
package enum DeviceCondition: String {
  case good = "ok"
  /// The host could not read or write something.
  case failing = "io-errors"
  /// The host lacks space at this moment.
  case full = "no-space"
  /// The format is broken somewhere.
  case damaged
  /// A barrier failed: nothing is written any more.
  case syncFailed = "sync-failed"

  /// The worst of all that has happened.
  init(_ events: ImageEvents.Summary) {
    if events[.syncFailed].count > 0 {
      self = .syncFailed
    } else if events[.damaged].count > 0 {
      self = .damaged
    } else if events.lacksSpace {
      self = .full
    } else if events[.readFailed].count > 0 || events[.writeFailed].count > 0 {
      self = .failing
    } else {
      self = .good
    }
  }
}

extension ImageEvents.Summary {
  /// The event that stands for the condition; nil if that is good.
  var trouble: ImageEvent? {
    switch DeviceCondition(self) {
    case .good: nil
    case .failing: self[.writeFailed].first ?? self[.readFailed].first
    case .full: self[.spaceLacking].last
    case .damaged: self[.damaged].first
    case .syncFailed: self[.syncFailed].first
    }
  }
}
