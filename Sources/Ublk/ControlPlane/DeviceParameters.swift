package import CUblk

/// Which rule of the driver a set of parameters breaks.
package enum ParameterError: Error, Equatable {
  case sizeNotWholeBlocks(bytes: UInt64, block: UInt64)
  case logicalBlock(bytes: UInt64)
  case physicalBlock(bytes: UInt64, logical: UInt64)
  case maxIO(bytes: UInt64, buffer: UInt64)
  case discardGranularity(bytes: UInt32)
  case dmaAlignment(bytes: UInt32)
}

/// What a device tells the block layer about itself.
///
/// `chunk_sectors` stays 0: requests are not split at clusters.
/// Source: drivers/block/ublk_drv.c, `ublk_validate_params`.
package struct DeviceParameters: Equatable, Sendable {
  /// Discard and write-zeroes.
  package struct Discard: Equatable, Sendable {
    /// Ranges smaller than this are not worth sending; bytes.
    package var granularity: UInt32
    /// The most bytes of one discard; 0 switches discard off.
    package var maxDiscardBytes: UInt64
    /// The most bytes of one write-zeroes; 0 switches it off.
    package var maxWriteZeroesBytes: UInt64

    package init(
      granularity: UInt32, maxDiscardBytes: UInt64 = 1 << 30, maxWriteZeroesBytes: UInt64 = 1 << 30
    ) {
      self.granularity = granularity
      self.maxDiscardBytes = maxDiscardBytes
      self.maxWriteZeroesBytes = maxWriteZeroesBytes
    }
  }

  /// The size in bytes, a multiple of the logical block.
  package var size: UInt64
  package var isReadOnly = false
  package var logicalBlock: UInt64 = 512
  package var physicalBlock: UInt64
  /// The smallest and the best unit of I/O, powers of two.
  package var minimumIO: UInt64
  package var optimalIO: UInt64
  /// Writes are durable only after a flush; FUA is then offered too.
  package var hasVolatileCache = true
  package var discard: Discard?
  /// What the memory of requests is aligned to, a power of two; matters for zero copy.
  package var dmaAlignment: UInt32 = 512

  /// What suits a disk of `size` bytes.
  ///
  /// `clusterSize` is the unit of allocation behind it, a power of two of at least 512.
  package init(size: UInt64, clusterSize: UInt64, isReadOnly: Bool = false) {
    self.size = size
    self.isReadOnly = isReadOnly
    physicalBlock = min(clusterSize, 4096)
    minimumIO = physicalBlock
    optimalIO = clusterSize
    discard = isReadOnly ? nil : Discard(granularity: UInt32(clusterSize))
  }

  /// Checks the driver's rules.
  ///
  /// - Parameter maxIOBytes: The size of the I/O buffer of a tag.
  /// - Throws: The first rule that is broken.
  package func validate(maxIOBytes: Int) throws(ParameterError) {
    guard Self.isPower(logicalBlock), (512...4096).contains(logicalBlock) else {
      throw .logicalBlock(bytes: logicalBlock)
    }
    guard size > 0, size % logicalBlock == 0 else {
      throw .sizeNotWholeBlocks(bytes: size, block: logicalBlock)
    }
    guard Self.isPower(physicalBlock), physicalBlock >= logicalBlock else {
      throw .physicalBlock(bytes: physicalBlock, logical: logicalBlock)
    }
    guard maxIOBytes >= 4096, maxIOBytes % 4096 == 0, maxIOBytes <= 32 << 20 else {
      throw .maxIO(bytes: UInt64(maxIOBytes), buffer: 32 << 20)
    }
    if let discard {
      let granularity = UInt64(discard.granularity)
      guard Self.isPower(granularity), granularity >= logicalBlock else {
        throw .discardGranularity(bytes: discard.granularity)
      }
    }
    guard Self.isPower(UInt64(dmaAlignment)), dmaAlignment <= 4096 else {
      throw .dmaAlignment(bytes: dmaAlignment)
    }
  }

  /// The parameters as SET_PARAMS takes them; valid ones only.
  package func encoded(maxIOBytes: Int) -> ublk_parameters {
    var raw = ublk_parameters()
    raw.len = UInt32(MemoryLayout<ublk_parameters>.size)
    raw.types = UInt32(UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DMA_ALIGN)
    raw.basic.attrs = attributes
    raw.basic.logical_bs_shift = Self.shift(logicalBlock)
    raw.basic.physical_bs_shift = Self.shift(physicalBlock)
    raw.basic.io_min_shift = Self.shift(minimumIO)
    raw.basic.io_opt_shift = Self.shift(optimalIO)
    raw.basic.max_sectors = UInt32(maxIOBytes / 512)
    raw.basic.dev_sectors = size / 512
    raw.dma.alignment = dmaAlignment - 1
    if let discard {
      raw.types |= UInt32(UBLK_PARAM_TYPE_DISCARD)
      raw.discard.discard_granularity = discard.granularity
      raw.discard.max_discard_sectors = Self.sectors(discard.maxDiscardBytes)
      raw.discard.max_write_zeroes_sectors = Self.sectors(discard.maxWriteZeroesBytes)
      raw.discard.max_discard_segments = 1
    }
    return raw
  }

  private var attributes: UInt32 {
    var bits = 0
    if isReadOnly { bits |= UBLK_ATTR_READ_ONLY }
    if hasVolatileCache { bits |= UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA }
    return UInt32(bits)
  }

  private static func isPower(_ value: UInt64) -> Bool { value.nonzeroBitCount == 1 }

  private static func shift(_ value: UInt64) -> UInt8 { UInt8(value.trailingZeroBitCount) }

  private static func sectors(_ bytes: UInt64) -> UInt32 { UInt32(min(bytes / 512, 1 << 31)) }
}
