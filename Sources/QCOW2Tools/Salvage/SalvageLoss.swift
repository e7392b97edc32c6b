package import BlockCore
package import QCOW2Format

/// Why a range of a disk could not be read.
package enum LossReason: Hashable, Sendable {
  /// The host could not read the data, or the table that leads to it.
  case host(Errno)
  /// The file ends before the data.
  case beyondEnd
  /// The entry that leads to the data is wrong.
  case entry(OffsetProblem)
  /// The entry that leads to the L2 table is wrong, or the table lies behind the end of the file.
  case table(OffsetProblem)
  /// The L1 table is not there.
  case noL1Table
  /// The compressed data does not inflate.
  case compressed
  /// The backing file has the data, and it was left out or cannot be opened or read.
  case backingFile
  /// The external data file has the data, and it cannot be opened.
  case dataFile

  /// The reason as the list has it.
  package var text: String {
    switch self {
    case .host(let errno): "the host cannot read it: \(errno)"
    case .beyondEnd: "the file ends before it"
    case .entry(let problem): "wrong L2 entry: \(problem.rawValue)"
    case .table(let problem): "wrong L1 entry: \(problem.rawValue)"
    case .noL1Table: "there is no L1 table for it"
    case .compressed: "the compressed data does not inflate"
    case .backingFile: "the backing file has it"
    case .dataFile: "the data file has it"
    }
  }
}

/// A range of a disk that reads as zeros because it could not be read.
package struct Loss: Equatable, Sendable {
  /// In bytes of the disk.
  package var range: Range<UInt64>
  package let reason: LossReason

  package init(_ range: Range<UInt64>, _ reason: LossReason) {
    self.range = range
    self.reason = reason
  }
}

/// The ranges that were lost, as they are met: the same one more than once, and in any order.
///
/// Of very many ranges the last are joined across what lies between them, so memory is bounded.
struct LossList {
  private static let most = 1 << 20
  private var losses: [Loss] = []

  mutating func add(_ range: Range<UInt64>, _ reason: LossReason) {
    if range.isEmpty { return }
    if let last = losses.last, last.reason == reason, last.range.upperBound >= range.lowerBound,
      last.range.lowerBound <= range.lowerBound
    {
      losses[losses.count - 1].range =
        last.range.lowerBound..<max(last.range.upperBound, range.upperBound)
      return
    }
    if losses.count >= 2 * Self.most { losses = sorted }
    if losses.count >= Self.most, let last = losses.last {
      let (start, end) = (last.range.lowerBound, last.range.upperBound)
      losses[losses.count - 1].range =
        min(start, range.lowerBound)..<max(end, range.upperBound)
      return
    }
    losses.append(Loss(range, reason))
  }

  /// In the order of the disk; ranges of one reason that touch each other are one.
  var sorted: [Loss] {
    var result: [Loss] = []
    for loss in losses.sorted(by: { $0.range.lowerBound < $1.range.lowerBound }) {
      if let last = result.last, last.reason == loss.reason,
        last.range.upperBound >= loss.range.lowerBound
      {
        result[result.count - 1].range =
          last.range.lowerBound..<max(last.range.upperBound, loss.range.upperBound)
      } else {
        result.append(loss)
      }
    }
    return result
  }
}
