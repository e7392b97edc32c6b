import BlockCore

/// Collects transfers, joining neighbours that continue each other.
@safe
package struct PlanBuilder {
  private let plan: UnsafeMutableBufferPointer<HostTransfer>
  package private(set) var count = 0
  private var dataOffset: UInt32 = 0

  @inline(__always) init(_ plan: UnsafeMutableBufferPointer<HostTransfer>) {
    unsafe self.plan = unsafe plan
  }

  /// Forgets what was added.
  @inline(__always) mutating func restart() {
    count = 0
    dataOffset = 0
  }

  /// Adds a transfer with a host file.
  ///
  /// - Returns: false when the plan is full.
  @inline(__always) mutating func append(
    file: UInt8, _ host: HostOffset, _ length: UInt64
  ) -> Bool {
    let length32 = UInt32(truncatingIfNeeded: length)
    if count > 0 {
      let last = unsafe plan[count &- 1]
      if last.kind == .file && last.file == file
        && last.hostOffset.bytes &+ UInt64(last.length) == host.bytes
      {
        return extendLast(by: length32)
      }
    }
    return add(
      HostTransfer(
        kind: .file, file: file, length: length32, dataOffset: dataOffset, hostOffset: host))
  }

  /// Adds zeros.
  ///
  /// - Returns: false when the plan is full.
  @inline(__always) mutating func appendZeroes(_ length: UInt64) -> Bool {
    let length32 = UInt32(truncatingIfNeeded: length)
    if count > 0, unsafe plan[count &- 1].kind == .zeroes { return extendLast(by: length32) }
    return add(
      HostTransfer(
        kind: .zeroes, length: length32, dataOffset: dataOffset, hostOffset: HostOffset(0)))
  }

  @inline(__always) private mutating func extendLast(by length: UInt32) -> Bool {
    unsafe plan[count &- 1].length &+= length
    dataOffset &+= length
    return true
  }

  @inline(__always) private mutating func add(_ transfer: HostTransfer) -> Bool {
    if unsafe count == plan.count { return false }
    unsafe plan[count] = transfer
    count &+= 1
    dataOffset &+= transfer.length
    return true
  }
}
