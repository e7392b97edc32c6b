import QCOW2Engine

// Valid images around tables that are the fuzzer's. The first eight bytes of an input choose the
// kind of image; the table follows.

private struct Control {
  let bytes: [UInt8]
  init(_ input: [UInt8]) { bytes = Array(input.prefix(8)) }
  func bit(_ number: Int) -> Bool { bytes[number / 8] >> UInt8(number % 8) & 1 == 1 }
}

/// The L2 table, and after it what the data clusters hold.
func fuzzL2(_ input: [UInt8]) {
  if input.count < 16 { return }
  let control = Control(input)
  var features = ImageTemplate.Features()
  features.isExtended = control.bit(0)
  features.isBacked = control.bit(1)
  features.hasDataFile = control.bit(2)
  features.cryptMethod = control.bit(3) ? (control.bit(8) ? 2 : 1) : 0
  features.usesZstd = control.bit(4)
  features.isRaw = control.bit(5) && control.bit(2)
  features.hasLazyRefcounts = control.bit(6)
  var template = ImageTemplate(features)
  template.put(Array(input.dropFirst(8)), atCluster: ImageTemplate.l2)
  var fuzz = FuzzImage(template.bytes)
  fuzz.options.compressesWrites = control.bit(7)
  fuzz.options.copyOnRead = control.bit(9)
  fuzz.run()
}

/// The snapshot table; the snapshots' L1 tables can be in it, too.
func fuzzSnapshots(_ input: [UInt8]) {
  if input.count < 16 { return }
  let control = Control(input)
  var features = ImageTemplate.Features()
  features.isExtended = control.bit(0)
  features.hasDataFile = control.bit(1)
  var template = ImageTemplate(features)
  template.setSnapshots(count: UInt32(control.bytes[1]), version: control.bit(2) ? 2 : 3)
  template.put(Array(input.dropFirst(8)), atCluster: ImageTemplate.free)
  FuzzImage(template.bytes).run()
}

/// The directory in the first cluster, then a table, then bits.
func fuzzBitmaps(_ input: [UInt8]) {
  if input.count < 16 { return }
  let control = Control(input)
  var template = ImageTemplate(ImageTemplate.Features())
  template.setBitmaps(
    count: UInt32(control.bytes[1]),
    length: UInt64(control.bytes[2]) << 8 | UInt64(control.bytes[3]))
  template.put(Array(input.dropFirst(8)), atCluster: ImageTemplate.free)
  var fuzz = FuzzImage(template.bytes)
  if control.bit(0) { fuzz.options.bitmapIntentBytes = 4096 }
  if control.bit(1) { fuzz.options.bitmapQuietMilliseconds = 0 }
  fuzz.run()
}
