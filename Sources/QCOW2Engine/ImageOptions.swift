/// How an image is opened for serving.
package struct ImageOptions: Sendable {
  /// Nothing is written, and features that only matter to writers are no obstacle.
  package var readOnly = false
  /// Worker numbers passed to requests are below this.
  package var workers = 1
  /// Slot numbers passed to requests are below this.
  package var slotsPerWorker = 128
  /// What L2 slices may take when nothing else is said: they map 256 GiB in clusters of 64 KiB.
  package static let standardCacheBytes = 32 << 20
  /// Memory for L2 slices in bytes, taken as it is used; nil: what the whole disk needs, at most
  /// ``standardCacheBytes``.
  package var cacheBytes: Int?
  /// The most bytes of clusters that a worker reserves at once.
  ///
  /// A copy that fills a new image takes few, so that no gaps stay between those of several workers.
  package var arenaBytes: UInt64 = 16 << 20
  /// Metadata is written back when it has been dirty for this long.
  package var dirtyAgeMilliseconds = 1000
  /// Of a bitmap, the bits of this much of the disk are set together, in bytes.
  package var bitmapIntentBytes: UInt64 = 64 << 20
  /// Bitmaps go back to the exact bits when no new range has been changed for this long.
  package var bitmapQuietMilliseconds = 5000
  /// Freed clusters are punched out of the host file; new ones on a block device are cleared, which
  /// may unmap them.
  package var discardsToHost = true
  /// Serve this internal snapshot, at its own size, in place of the active disk; nothing is
  /// written.
  package var snapshot: SnapshotSelector?

  /// What is read from a backing file is kept in the image.
  package var copyOnRead = false
  /// Clusters that are written whole are compressed; what does not get smaller is written plain.
  package var compressesWrites = false

  /// Refuse to open for writing, with nothing changed, where the bitmap directory breaks the format;
  /// else all bitmaps are declared inconsistent.
  package var requiresBitmaps = false

  /// The way to the administrator for what goes wrong; nil if there is none.
  package var reporter: EventReporter?

  package init() {}
}
