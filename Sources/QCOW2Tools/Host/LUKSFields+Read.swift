import BlockCore
import QCOW2Codec

extension LUKSFields {
  /// Reads the fields at `offset`; bytes past the end of the image are zeros.
  init(reading bytes: any ImageBytes, at offset: HostOffset) throws(ToolError) {
    let block = try bytes.block(at: offset, count: Self.length)
    self = block.withBytes { LUKSFields(parsing: $0) }
  }
}
