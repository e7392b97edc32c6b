/// The formats that a backing file may have.
package enum BackingFormat: String, Sendable, CaseIterable {
  case raw, qcow2
}
