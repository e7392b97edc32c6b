import Glibc

/// Texts about bytes and time, in qemu-io's form.
enum IOReport {
  /// A byte count, or a rate in bytes, with a binary unit.
  static func size(_ value: Double) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var unit = units.count - 1
    while unit > 0 && value < Double(UInt64(1) << UInt64(unit * 10)) { unit -= 1 }
    let scaled = value / Double(UInt64(1) << UInt64(unit * 10))
    let text = formatted(unit == 0 ? "%f" : "%.3f", scaled)
    guard let zeroes = text.firstRange(of: ".000") else { return "\(text) \(units[unit])" }
    return "\(text[..<zeroes.lowerBound]) \(units[unit])"
  }

  static func size(_ bytes: UInt64) -> String { size(Double(bytes)) }

  /// What is printed of a request that was carried out: `action` is "read", "wrote" or "discard";
  /// for machines (`-C`) it is one line of numbers with commas.
  static func lines(
    _ action: String, offset: UInt64, count: UInt64, nanoseconds: UInt64, isForMachines: Bool
  ) -> String {
    let seconds = Double(max(nanoseconds, 1)) / 1e9
    let rate = Double(count) / seconds
    let operations = 1 / seconds
    if isForMachines {
      return "\(count),1,\(clock(nanoseconds)),\(formatted("%.3f", rate)),"
        + "\(formatted("%.3f", operations))\n"
    }
    return "\(action) \(count)/\(count) bytes at offset \(offset)\n"
      + "\(size(count)), 1 ops; \(duration(nanoseconds)) "
      + "(\(size(rate))/sec and \(formatted("%.4f", operations)) ops/sec)\n"
  }

  private static func duration(_ nanoseconds: UInt64) -> String {
    if nanoseconds >= 60_000_000_000 { return clock(nanoseconds) }
    return "\(two(nanoseconds / 1_000_000_000)).\(two(nanoseconds / 10_000_000 % 100)) sec"
  }

  /// Hours, minutes, seconds and hundredths.
  private static func clock(_ nanoseconds: UInt64) -> String {
    let seconds = nanoseconds / 1_000_000_000
    return "\(seconds / 3600):\(two(seconds / 60 % 60)):\(two(seconds % 60))."
      + two(nanoseconds / 10_000_000 % 100)
  }

  private static func two(_ value: UInt64) -> String { value < 10 ? "0\(value)" : "\(value)" }

  private static func formatted(_ format: String, _ value: Double) -> String {
    var text = [CChar](repeating: 0, count: 400)  // the largest double has 309 digits
    let count = unsafe withVaList([value]) { unsafe vsnprintf(&text, text.count, format, $0) }
    let bytes = text.prefix(max(0, min(Int(count), text.count - 1)))
    return String(decoding: bytes.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
