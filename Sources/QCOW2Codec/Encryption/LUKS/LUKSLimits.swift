/// How much work a header may ask for.
package struct LUKSLimits: Sendable {
  /// Of one key derivation.
  ///
  /// The default takes a minute or two; QEMU's default of 2 s writes some millions.
  package var iterations: UInt32 = 1 << 28

  package init() {}
}
