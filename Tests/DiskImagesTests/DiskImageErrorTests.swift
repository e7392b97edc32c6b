import DiskImages
import QCOW2Engine
import Testing

@Suite struct DiskImageErrorTests {
  @Test func anErrorNamesItsImage() {
    guard case .image(let path, _) = DiskImageError.image(path: "a", .noSpace) else { return }
    #expect(path == "a")
  }
}
