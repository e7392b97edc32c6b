import QCOW2Format

// What libFuzzer does not know about images: half of all mutations go to a header field or to a
// table entry and put something plausible there.

@_silgen_name("LLVMFuzzerMutate")
private func libFuzzerMutate(_ data: UnsafeMutablePointer<UInt8>, _ count: Int, _ most: Int) -> Int

/// Called by libFuzzer to make a new input out of an old one.
@_cdecl("LLVMFuzzerCustomMutator")
public func mutate(
  _ data: UnsafeMutablePointer<UInt8>, _ count: Int, _ most: Int, _ seed: UInt32
) -> Int {
  var random = Dice(state: UInt64(seed))
  let hasHeader = FuzzTarget.current == .image || FuzzTarget.current == .header
  let hasEntries = FuzzTarget.current != .luks && FuzzTarget.current != .payload
  if !hasEntries || count < (hasHeader ? 512 : 16) || random.roll(2) == 0 {
    return libFuzzerMutate(data, count, most)
  }
  let bytes = UnsafeMutableRawPointer(data)
  let clusterBits = 9 + UInt64(random.roll(4) == 0 ? random.roll(4) : 0)
  for _ in 0...random.roll(3) {
    if hasHeader && random.roll(4) == 0 {
      mutateHeader(bytes, count, clusterBits, &random)
    } else {
      let entry = random.roll(count / 8) * 8
      bytes.storeBE64(entryValue(count, clusterBits, &random), entry)
    }
  }
  return count
}

private func mutateHeader(
  _ bytes: UnsafeMutableRawPointer, _ count: Int, _ clusterBits: UInt64, _ random: inout Dice
) {
  let wide = [8, 24, 40, 48, 64, 72, 80, 88]
  let narrow = [4, 16, 20, 32, 36, 56, 60, 96, 100]
  if random.roll(2) == 0 {
    bytes.storeBE64(entryValue(count, clusterBits, &random), wide[random.roll(wide.count)])
  } else {
    let power = UInt32(1) << UInt32(random.roll(32))
    let value = [UInt32(random.roll(32)), power, power &- 1, UInt32.max][random.roll(4)]
    bytes.storeBE32(value, narrow[random.roll(narrow.count)])
  }
}

/// A cluster in or near the file with flags, or a number at the edge of what a field may be.
private func entryValue(_ count: Int, _ clusterBits: UInt64, _ random: inout Dice) -> UInt64 {
  let flags: [UInt64] = [0, 1 << 63, 1, 1 << 63 | 1, 1 << 62, 1 << 61]
  switch random.roll(8) {
  case 0: return 0
  case 1: return UInt64(1) << UInt64(random.roll(64))
  case 2: return (UInt64(1) << UInt64(random.roll(64))) &- 1
  case 3: return UInt64(random.roll(count))
  default:
    let cluster = UInt64(random.roll(count / 512 + 4))
    return cluster << clusterBits | flags[random.roll(flags.count)]
  }
}

private struct Dice {
  var state: UInt64
  /// A number from 0 to `sides` - 1.
  mutating func roll(_ sides: Int) -> Int {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return Int((state >> 33) % UInt64(max(sides, 1)))
  }
}
