package import BlockCore

extension Image {
  /// Runs `body` while the host file is all there is of the image: no request is in flight, no snapshot is
  /// being taken or deleted, and everything is written back.
  ///
  /// Requests that come meanwhile wait for as long as `body` takes.
  ///
  /// - Parameter body: Gets the host clusters with a reference that no table shows: what is set aside
  ///   for writes to come, and what has lost its pointer only just now.
  /// - Throws: The failure of the write-back; `body` has not run then.
  package func inspect(_ body: ([Range<HostCluster>]) -> Void) async throws(ImageError) {
    if options.readOnly { return body([]) }
    await snapshotting.acquire()
    defer { snapshotting.release() }
    try await exclusively { () async throws(ImageError) in
      // Nobody is at them any more: their refcounts go down now.
      while try await supply.returnMature() {}
      try await durability.flusher.flush()
      body(await clustersSetAside())
    }
  }

  /// Runs `body` beside requests, when every request from before has ended and what it did is written back,
  /// and while no snapshot is taken or deleted.
  ///
  /// What `body` reads of the host file need not fit together. But what is wrong there because of one request
  /// is right when `body` runs the next time.
  ///
  /// - Parameter body: Gets what it gets from ``inspect(_:)``, as it was before.
  /// - Throws: The failure of the write-back; `body` has not run then.
  package func observe(_ body: ([Range<HostCluster>]) -> Void) async throws(ImageError) {
    if options.readOnly { return body([]) }
    await snapshotting.acquire()
    defer { snapshotting.release() }
    // A task that is cancelled looks all the same: the verdict is not taken from one look.
    try? await quiesce()
    try await durability.flusher.flush()
    body(await clustersSetAside())
  }

  private func clustersSetAside() async -> [Range<HostCluster>] {
    supply.untaken + supply.freed + [await supply.packer.reserved()]
  }
}
