package import BlockCore

extension Bench {
  /// Writes whole sectors with the pattern of a new change, which the model gets to know.
  ///
  /// - Parameters:
  ///   - sectors: Where, on the guest's disk.
  ///   - driver: Who carries it out, in slot 0.
  /// - Returns: What the guest sees if it fails; the model then takes the write for unfinished.
  package func write(_ sectors: Range<Int>, by driver: MiniWorker) async -> Errno? {
    let buffer = IOBuffer(count: sectors.count * 512)
    let change = model.begin(sectors, isZero: false)
    for sector in sectors {
      SectorPattern.fill(
        buffer.base + (sector - sectors.lowerBound) * 512, change: change, sector: sector)
    }
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(sectors.lowerBound * 512)),
      length: UInt64(buffer.count), data: buffer.data)
    if let errno = await driver.perform(request, slot: 0) { return errno }
    model.end(change)
    withExtendedLifetime(buffer) {}
    return nil
  }
}
