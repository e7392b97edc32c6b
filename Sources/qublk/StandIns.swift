// Stand-ins until the engine and the Ublk module land.
import BlockCore
import Glibc
import HostFiles
import QCOW2Format

struct ImageOptions: Sendable {
  var readOnly = false
  var workers = 1
  var slotsPerWorker = 128
  var cacheBytes: Int? = nil
  var dirtyAgeMilliseconds = 1000
  var discardsToHost = true
}
enum ImageError: Error {
  case x
  var message: String { "not a qcow2 image: magic is 0x0, expected 0x514649fb" }
}
final class Image: BlockTarget {
  let file: any HostFile
  var size: UInt64 { 1 << 20 }
  init(_ f: any HostFile) { file = f }
  static func open(_ file: any HostFile, options: ImageOptions) async throws(ImageError) -> Image {
    let b = IOBuffer(count: 4096)
    do { try await file.read(into: b.data, at: HostOffset(0)) } catch { throw .x }
    if b.base.load(as: UInt32.self) != 0xfb49_4651 { throw .x }
    return Image(file)
  }
  func plan(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .needsService }
  func finish(worker: Int, slot: Int) {}
  func serve(_ request: BlockRequest, worker: Int, slot: Int) async -> Errno? { nil }
  func maintain() async {}
  func close() async throws(ImageError) {}
}
enum UblkError: Error {
  case noControlDevice(Errno)
  var text: String {
    guard case .noControlDevice(let e) = self else { return "" }
    return "/dev/ublk-control: \(e): load the driver with \"modprobe ublk_drv\""
  }
}
struct DeviceOptions {}
final class UblkDevice {
  let id: UInt32 = 0
  let usesZeroCopy = false
  let endedDescriptor: Int32 = -1
  static func create(_ t: any BlockTarget, _ o: DeviceOptions) throws(UblkError) -> UblkDevice {
    throw .noControlDevice(.noEntry)
  }
  func stop() throws(UblkError) {}
}
struct DeviceInfo {
  enum State { case live, dead }
  var state: State = .dead
  var queues = 1
  var depth = 1
  var serverProcess: Int32 = 0
}
final class ControlDevice {
  init() throws(UblkError) { throw .noControlDevice(.noEntry) }
  func info(_ id: UInt32) throws(UblkError) -> DeviceInfo { DeviceInfo() }
  func stop(_ id: UInt32) throws(UblkError) {}
  func delete(_ id: UInt32) throws(UblkError) {}
}
extension AttachRequest {
  func deviceOptions(_ image: AttachedImage) -> DeviceOptions { DeviceOptions() }
}
