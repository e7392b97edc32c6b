import HostFiles
import Uring

@testable import DiskImages

/// The files of a chain, open without an engine, for as long as the object lives.
final class OpenChain {
  let layers: [ChainLayer]
  let files: [RingHostFile]

  init(_ options: DiskImageOptions) throws(DiskImageError) {
    let chain = try runBlocking { () async throws(DiskImageError) in
      var chain = Chain(options)
      do throws(DiskImageError) { try await chain.open() } catch {
        chain.close()
        throw error
      }
      return chain
    }
    layers = chain.layers
    files = chain.files
  }

  deinit { Chain.close(files) }
}
