import BlockCore
package import QCOW2Engine
import QCOW2Format

extension ImageEvent {
  /// What happened, with its place, and what that means.
  package var text: String {
    let file = object.text
    switch kind {
    case .readFailed, .writeFailed: return "\(file): \(failure)"
    case .syncFailed: return "\(file): cannot make what was written durable: \(reason)"
    case .damaged: return "\(file): \(problem ?? "damaged")\(place)\(effect)"
    case .spaceLacking: return "\(file): no space left on the host\(place)"
    case .spaceFound: return "\(file): the host has space again"
    case .bitmapDropped, .refcountsRebuilt: return "\(file): \(problem ?? kind.name)"
    }
  }

  /// What to do; empty if there is nothing.
  func wayOut(_ device: DeviceName, holdsRequests: Bool) -> String {
    switch kind {
    case .readFailed: ": requests for this data fail: look after the host's storage"
    case .writeFailed: ": requests fail and leave what was there: look after the host's storage"
    case .syncFailed:
      ": what was written since the last flush may be lost, and every write and flush fails from now "
        + "on: look after the host's storage, detach with \"qublk del --force \(device.path)\", and "
        + "attach again; what is on the device then is what the host has kept"
    case .damaged: ": " + repair
    case .spaceLacking where holdsRequests: ": requests are held until there is"
    case .spaceLacking:
      ": requests that need it fail with ENOSPC, and the guest sees a full disk: free space on the "
        + "host; attached with --on-enospc hold, requests wait for it"
    case .spaceFound: ": requests succeed"
    case .bitmapDropped, .refcountsRebuilt: ""
    }
  }

  private var reason: String { errno.map(\.description) ?? problem ?? "unknown error" }

  /// As "cannot read 4096 bytes at host offset 0x50000: Input/output error (EIO)".
  private var failure: String {
    let verb =
      switch operation {
      case .read, nil: "read"
      case .write: "write"
      case .zero: "write zeroes or discard"
      case .sync: "sync"
      case .length: "find the length"
      case .resize: "grow"
      }
    let bytes = length > 0 ? " \(length) bytes" : ""
    return
      "cannot \(verb)\(bytes)\(offset.map { " at host offset \(hex($0.bytes))" } ?? ""): \(reason)"
  }

  /// As " (at host offset 0x40028, guest offset 0x50000)".
  private var place: String {
    let parts =
      (kind == .damaged ? offset.map { ["at host offset \(hex($0.bytes))"] } ?? [] : [])
      + (guest.map { ["guest offset \(hex($0.bytes))"] } ?? [])
    return parts.isEmpty ? "" : " (\(parts.joined(separator: ", ")))"
  }

  private var effect: String {
    switch consequence {
    case .requestFails: ": requests that need it fail"
    case .writingStops: ": nothing is changed any more, and the rest can be read"
    case .markedCorrupt:
      ": the image is marked corrupt and nothing is changed any more; the rest can be read"
    }
  }

  private var repair: String {
    let path = printable(object.path)
    guard consequence != .requestFails else { return "see what \"qublk check \(path)\" says" }
    return
      "once it is detached, \"qublk check -r all \(path)\" may repair it; if that leaves errors, "
      + "attach it with --read-only and copy the data off"
  }
}

extension HostObject {
  /// As "image /a/b.qcow2".
  var text: String { "\(role.rawValue) \(printable(path))" }
}

extension ImageEvent.Kind {
  /// As in JSON and in `stats`.
  var name: String {
    switch self {
    case .readFailed: "read_error"
    case .writeFailed: "write_error"
    case .syncFailed: "sync_error"
    case .damaged: "damage"
    case .spaceLacking: "no_space"
    case .spaceFound: "space_again"
    case .bitmapDropped: "bitmap_dropped"
    case .refcountsRebuilt: "refcounts_rebuilt"
    }
  }
}
