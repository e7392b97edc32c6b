import QCOW2Engine
import Testing

@testable import DiskImages

@Suite struct CacheShareTests {
  @Test("Backing images share what one image may have, however many they are")
  func backingImagesShare() {
    var options = ImageOptions()
    #expect(DiskImage.cacheBytes(forEachOf: 1, options) == nil)
    #expect(DiskImage.cacheBytes(forEachOf: 4, options) == 8 << 20)
    #expect(DiskImage.cacheBytes(forEachOf: 200, options) == (32 << 20) / 200)
    options.cacheBytes = 4 << 20
    #expect(DiskImage.cacheBytes(forEachOf: 1, options) == 4 << 20)
    #expect(DiskImage.cacheBytes(forEachOf: 2, options) == 2 << 20)
    #expect(DiskImage.cacheBytes(forEachOf: 200, options) == 64 << 10)
  }
}
