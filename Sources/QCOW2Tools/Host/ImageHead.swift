import BlockCore
package import QCOW2Format

/// The first cluster of an image, read and judged: what `info` and `check` start from.
///
/// The judgement is that of ``HeaderCluster``, as it is the engine's. What only a writer cannot do
/// with, such as tables beyond the end of the file, can still be looked at.
package struct ImageHead {
  package let parsed: HeaderCluster
  package let fileLength: UInt64

  package var header: Header { parsed.header }
  package var geometry: ClusterGeometry { header.geometry }
  /// The virtual size in bytes, in whole sectors, as QEMU sees it.
  package var diskSize: UInt64 { header.size & ~511 }

  /// Reads and checks the header, its extensions and the place of the backing file's name.
  package init(reading bytes: any ImageBytes) throws(ToolError) {
    fileLength = bytes.length
    let start = try bytes.block(at: HostOffset(0), count: HeaderCluster.startLength)
    let size: Int
    do throws(FormatError) {
      size = try start.withBytes { [fileLength] bytes throws(FormatError) in
        try HeaderCluster.size(start: bytes, fileLength: fileLength)
      }
    } catch {
      throw .format(error)
    }
    let cluster = try bytes.block(at: HostOffset(0), count: size)
    do throws(FormatError) {
      parsed = try cluster.withBytes { [fileLength] bytes throws(FormatError) in
        try HeaderCluster(parsing: bytes, fileLength: fileLength)
      }
    } catch {
      throw .format(error)
    }
  }
}

extension ImageHead {
  /// The bitmaps extension, if it is there and the autoclear bit says that it can be trusted.
  package var bitmaps: Result<BitmapsExtension, FormatError>? {
    header.autoclear.contains(.bitmaps) ? parsed.bitmaps : nil
  }
}
