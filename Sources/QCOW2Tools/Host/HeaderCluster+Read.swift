import BlockCore
package import QCOW2Format

extension HeaderCluster {
  /// Reads and judges the first cluster of an image: what `info`, `check` and repair start from.
  ///
  /// What only a writer cannot do with, such as tables beyond the end of the file, can still be
  /// looked at.
  package init(reading bytes: any ImageBytes) throws(ToolError) {
    var reader = HeaderClusterReader(fileLength: bytes.length)
    while true {
      let block = try bytes.block(at: HostOffset(0), count: reader.wanted)
      do throws(FormatError) {
        let found = try block.withBytes { bytes throws(FormatError) in try reader.take(bytes) }
        guard let found else { continue }
        self = found
        return
      } catch { throw .format(error) }
    }
  }
}
