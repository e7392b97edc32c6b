import Glibc

/// What the bytes of an input are; chosen by the environment variable FUZZ_TARGET.
enum FuzzTarget: String, CaseIterable {
  /// A whole image.
  case image
  /// The first cluster of an image: header, extensions, names.
  case header
  /// An L2 table and the data clusters behind it.
  case l2
  /// A snapshot table.
  case snapshots
  /// A bitmap directory, and tables and bits behind it.
  case bitmaps
  /// A LUKS header with its key material.
  case luks
  /// A compressed cluster.
  case payload

  static let current: FuzzTarget = {
    guard let name = getenv("FUZZ_TARGET") else { return .image }
    guard let target = FuzzTarget(rawValue: String(cString: name)) else {
      fatalError("FUZZ_TARGET is none of \(allCases.map(\.rawValue))")
    }
    return target
  }()
}

/// Called by libFuzzer before the first input: LUKS headers with few iterations, which qemu-img
/// does not make, are made here.
@_cdecl("LLVMFuzzerInitialize")
public func fuzzInitialize(_ count: UnsafeRawPointer, _ arguments: UnsafeRawPointer) -> CInt {
  if FuzzTarget.current == .luks { writeLUKSSeeds("seeds/luks/") }
  return 0
}

/// Called by libFuzzer for each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ data: UnsafePointer<UInt8>, _ count: Int) -> CInt {
  let bytes = Array(UnsafeBufferPointer(start: data, count: count))
  switch FuzzTarget.current {
  case .image: FuzzImage(bytes).run()
  case .header: fuzzHeader(bytes)
  case .l2: fuzzL2(bytes)
  case .snapshots: fuzzSnapshots(bytes)
  case .bitmaps: fuzzBitmaps(bytes)
  case .luks: fuzzLUKS(bytes)
  case .payload: fuzzPayload(bytes)
  }
  return 0
}
