package import BlockCore
import QCOW2Format

/// Compares the refcounts of an image with its references while an engine changes both.
///
/// The engine says which clusters must not be judged, since their references come and go. What is read of all
/// others is true at any time, although nothing is read at one moment, as long as each table was read as it
/// was: see ``isTable(_:)`` and ``obstacle``.
package final class LeakScan {
  /// A cluster that does not have the refcount that it should.
  package struct Suspect: Equatable, Sendable {
    /// Which one.
    package let cluster: HostCluster
    /// What is counted.
    package let refcount: UInt64
    /// How many references were found.
    package let references: UInt64
  }

  /// What an engine says of a cluster.
  package enum Standing: Sendable {
    /// What is read of it is true.
    case constant
    /// Its references come or go.
    case changed
    /// The engine's own.
    case past
  }

  /// The most suspects that are kept: the rest is for another scan.
  package static let most = 1 << 20

  /// Clusters with a refcount that is too high, by number.
  package private(set) var leaked: [Suspect] = []
  /// Clusters with a refcount that is too low, by number.
  package private(set) var tooLow: [Suspect] = []
  /// Clusters that may have a refcount that is too high.
  package private(set) var changing: Set<HostCluster> = []
  /// There were more.
  package private(set) var isCutShort = false
  /// Why references may be hidden, in words: nothing is known to be leaked then.
  package private(set) var obstacle: String?
  private var references: ReferenceMap?

  /// Reads all metadata.
  ///
  /// - Parameters:
  ///   - bytes: The host file, which may change meanwhile.
  ///   - behind: In so many bytes behind its end refcounts are looked at, too: after a power cut the file may
  ///     be shorter than they say.
  ///   - standing: What is to be thought of a cluster; asked again and again.
  ///   - isCancelled: Asked between tables; true ends the scan.
  /// - Throws: ``ToolError``, if the scan could not be completed.
  package init(
    _ bytes: any ImageBytes, behind: UInt64, standing: @escaping (HostCluster) -> Standing,
    isCancelled: @escaping () -> Bool = { false }
  ) throws(ToolError) {
    do throws(ToolError) { try scan(bytes, behind, standing, isCancelled) } catch {
      // A table that moves under the scan looks like that, too.
      guard case .format(let problem) = error else { throw error }
      obstacle = problem.message
    }
  }

  private func scan(
    _ bytes: any ImageBytes, _ behind: UInt64, _ standing: @escaping (HostCluster) -> Standing,
    _ isCancelled: @escaping () -> Bool
  ) throws(ToolError) {
    let clusterBits = UInt64(try HeaderCluster(reading: bytes).geometry.clusterBits)
    let check = try ImageCheck(bytes) { [unowned self] finding in
      self.note(finding, clusterBits, standing)
    }
    check.isCancelled = isCancelled
    check.comparesBehindEnd = behind >> clusterBits
    try check.run()
    references = check.references
  }

  private func note(
    _ finding: CheckFinding, _ clusterBits: UInt64, _ standing: (HostCluster) -> Standing
  ) {
    if finding.hidesReferences { obstacle = obstacle ?? finding.message }
    guard case .refcount(let offset, let found, let expected) = finding else { return }
    let cluster = HostCluster(offset.bytes >> clusterBits)
    switch standing(cluster) {
    case .past: return
    case .changed:
      if found > expected, changing.count < Self.most { changing.insert(cluster) }
    case .constant: add(Suspect(cluster: cluster, refcount: found, references: expected))
    }
  }

  private func add(_ suspect: Suspect) {
    if leaked.count + tooLow.count >= Self.most {
      isCutShort = true
    } else if suspect.refcount > suspect.references {
      leaked.append(suspect)
    } else {
      tooLow.append(suspect)
    }
  }

  /// Whether a cluster was read as metadata, or as several things.
  ///
  /// If it has become free meanwhile, what was read there may have been something else.
  package func isTable(_ cluster: HostCluster) -> Bool {
    switch references?.use(of: cluster) {
    case .nothing?, .guestData?, .bitmapData?: false
    default: true
    }
  }
}
