import HostFiles
package import QCOW2Engine

/// A backing file of an open image, which nobody changes.
package struct OpenBackingFile: Sendable {
  /// What is read from it and what lies below it.
  package let layer: any BackingLayer
  /// It has no format of its own.
  package let isRaw: Bool
  /// Closed with the image.
  let file: RingHostFile
}
