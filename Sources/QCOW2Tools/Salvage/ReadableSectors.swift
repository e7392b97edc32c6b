import BlockCore

extension ImageBytes {
  /// Reads bytes of a file that may have bad sectors; those that cannot be read, and those behind its end, are
  /// zeros.
  ///
  /// - Parameters:
  ///   - buffer: Filled as a whole; its length is a multiple of 512.
  ///   - offset: A multiple of 512.
  func readSectors(into buffer: IOBuffer, at offset: HostOffset) {
    do throws(ToolError) { try read(into: buffer, count: buffer.count, at: offset) } catch {
      for start in stride(from: 0, to: buffer.count, by: 512) {
        let sector = unsafe UnsafeMutableRawBufferPointer(start: buffer.base + start, count: 512)
        do throws(ToolError) { try unsafe read(into: sector, at: offset + UInt64(start)) } catch {
          unsafe sector.initializeMemory(as: UInt8.self, repeating: 0)
        }
      }
    }
  }
}
