import BlockCore

/// The memory of a slice cache, as much of it as can be had: what a size asks for that no host has is
/// halved until there is enough.
@safe
struct CacheMemory {
  /// What the slices are of.
  enum Contents {
    case l2, refcounts

    var kinds: (slots: MetadataKind, slices: MetadataKind) {
      switch self {
      case .l2: (.l2Slots, .l2Slices)
      case .refcounts: (.refcountSlots, .refcountSlices)
      }
    }
  }

  /// The bytes of all slots.
  let slices: MetadataRegion
  /// The bookkeeping of all slots, to be deallocated.
  let stripes: LockedStripes<CacheStripe>
  let perStripe: Int

  /// - Parameters:
  ///   - contents: what the slices are of.
  ///   - stripes: the number of stripes.
  ///   - wanted: slots in each of them.
  ///   - sliceSize: the bytes of a slice.
  ///   - memory: where slots and slices lie.
  /// - Returns: one with as many slots as could be had, at most as many as wanted.
  /// - Throws: ``ImageError/noMemory(bytes:)`` if there is none for a slot in each stripe.
  static func allocate(
    _ contents: Contents, stripes: Int, perStripe wanted: Int, sliceSize: Int,
    in memory: MetadataMemory
  ) throws(ImageError) -> CacheMemory {
    var slots = wanted
    while true {
      do throws(ImageError) {
        return try CacheMemory(contents, slots, stripes: stripes, sliceSize: sliceSize, memory)
      } catch {
        if slots == 1 { throw error }
        slots /= 2
      }
    }
  }

  private init(
    _ contents: Contents, _ perStripe: Int, stripes count: Int, sliceSize: Int,
    _ memory: MetadataMemory
  ) throws(ImageError) {
    let (total, isTooLarge) = count.multipliedReportingOverflow(by: perStripe)
    if isTooLarge { throw .noMemory(bytes: .max) }
    let slices = try memory.region(contents.kinds.slices, elementSize: sliceSize, count: total)
    var made = [slices]
    do throws(ImageError) {
      let slots = try memory.region(
        contents.kinds.slots, elementSize: MemoryLayout<CacheSlot>.stride, count: total)
      made.append(slots)
      stripes = try LockedStripes(count: count, rank: .slice) { (number) throws(ImageError) in
        try CacheStripe(
          slots, slices, sliceSize: sliceSize, first: number * perStripe, count: perStripe)
      }
    } catch {
      for region in made { memory.giveBack(region) }
      throw error
    }
    self.slices = slices
    self.perStripe = perStripe
  }
}
