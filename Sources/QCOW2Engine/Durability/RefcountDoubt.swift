import QCOW2Format

/// The DIRTY bit around an operation during which COPIED and refcounts do not agree on the host file.
///
/// When references come or go by the thousand, a refcount and the COPIED flag that depends on it lie in
/// different sectors, so no order of writes keeps both right. No data is at risk: references are raised
/// before anyone relies on them, and lowered after nobody does. But a check of such an image would find
/// errors. With DIRTY set, whoever opens the image for writing after a crash counts anew. Version 2 has
/// no such bit: there a crash may leave flags that `check -r all` mends.
///
/// An operation that fails half-way never ends its doubt: DIRTY then stays until the image is opened anew,
/// whatever other operations begin and end (``LazyRefcounts/hold()``).
struct RefcountDoubt: Sendable {
  private let editor: HeaderEditor
  private let flusher: FlushCoordinator

  init(_ durability: Durability) {
    editor = durability.headerEditor
    flusher = durability.flusher
  }

  private var lazy: LazyRefcounts { flusher.lazy }

  /// Sets the bit, durably.
  ///
  /// - Throws: With the bit as it was, unless the header cannot be written.
  func begin() async throws(ImageError) {
    try await prepare()
    if !usesHeader { return }
    do throws(ImageError) { try await editor.setDirty(true) } catch {
      await abandon()
      throw error
    }
  }

  /// The same in two steps: before a change of the header, and as part of it.
  func prepare() async throws(ImageError) {
    lazy.hold()
    if !lazy.isOn { return }
    do throws(ImageError) {
      // A round from before the hold may still clear the bit: it has ended when the next one has.
      try await flusher.flush()
      if !lazy.isMarked { try await lazy.mark() }
    } catch {
      lazy.endHold()
      throw error
    }
  }

  /// What begins it in a change of the header, after ``prepare()``.
  func beginning(_ header: Header) -> [HeaderPatch] { usesHeader ? [header.adding(.dirty)] : [] }

  /// What ends it in a change of the header, before ``noteEnd()``; all that it was about is durable.
  func ending(_ header: Header) -> [HeaderPatch] {
    usesHeader && lazy.holdCount == 1 ? [header.removing(.dirty)] : []
  }

  /// The header has what ``ending(_:)`` says.
  func noteEnd() { lazy.endHold() }

  /// Ends it where no reference and no COPIED has changed since ``begin()``.
  ///
  /// If the header cannot be written, the bit stays, and the next operation takes it away.
  func abandon() async {
    noteEnd()
    if usesHeader, lazy.holdCount == 0 { try? await editor.setDirty(false) }
  }

  /// Makes all durable, and clears the bit, unless lazy refcounts or a failed operation need it; without this
  /// call it stays.
  func end() async throws(ImageError) {
    try await flusher.flush()
    noteEnd()
    if usesHeader, lazy.holdCount == 0 { try await editor.setDirty(false) }
  }

  /// Lazy refcounts set and clear the bit themselves.
  private var usesHeader: Bool { !lazy.isOn && editor.header.version >= 3 }
}
