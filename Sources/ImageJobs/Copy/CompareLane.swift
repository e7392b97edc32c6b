import BlockCore
import DiskImages
import Glibc
import Serving

/// What one thread of a comparison has for itself; confined to it.
final class CompareLane: @unchecked Sendable {  // why: confined to one thread
  private let requests: [FileRequests]
  private let names: [String]
  private var buffers: [Int: IOBuffer] = [:]
  private static let sector = 512

  init(_ disks: CompareJob.Disks, thread: Int) {
    let both = [disks.first, disks.second]
    requests = both.map { FileRequests($0, worker: thread) }
    names = both.map(\.name)
  }

  /// Compares one range, and notes the first sector that differs or cannot be read.
  func compare(
    _ range: CompareRange, _ task: Int, _ findings: CompareFindings
  ) async throws(JobError) {
    do throws(JobError) {
      let difference: Int?
      switch range.way {
      case .same: return
      case .both:
        let first = unsafe try await read(0, range, task)
        let second = unsafe try await read(1, range, task)
        difference = unsafe Self.difference(first, second)
      case .zeroes(let isFirst):
        difference = unsafe Self.firstData(try await read(isFirst ? 0 : 1, range, task))
      }
      if let difference { findings.note(.content, at: range.offset + UInt64(difference)) }
    } catch {
      if case .cancelled = error { throw error }
      findings.note(error, at: range.offset)
    }
  }

  private func read(
    _ disk: Int, _ range: CompareRange, _ task: Int
  ) async throws(JobError) -> UnsafeRawBufferPointer {
    let buffer = buffer(2 * task + disk, Int(range.length))
    let data = buffer.data.slice(0, Int(range.length))
    let request = BlockRequest(
      .read, offset: GuestOffset(range.offset), length: range.length, data: data)
    if let errno = await requests[disk].perform(request, slot: task) {
      throw .reading(disk: names[disk], at: range.offset, errno)
    }
    return unsafe UnsafeRawBufferPointer(start: buffer.base, count: data.count)
  }

  /// Kept for the thread's life, so that pointers into it stay right.
  private func buffer(_ number: Int, _ count: Int) -> IOBuffer {
    if let buffer = buffers[number], buffer.count >= count { return buffer }
    let buffer = IOBuffer(count: max(count, 1 << 19))
    buffers[number] = buffer
    return buffer
  }

  private static func difference(
    _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer
  ) -> Int? {
    guard let one = first.baseAddress, let two = second.baseAddress,
      unsafe memcmp(one, two, first.count) != 0
    else { return nil }
    return stride(from: 0, to: first.count, by: sector).first {
      unsafe memcmp(one + $0, two + $0, min(sector, first.count - $0)) != 0
    }
  }

  private static func firstData(_ bytes: UnsafeRawBufferPointer) -> Int? {
    if unsafe bytes.isAllZeros { return nil }
    return stride(from: 0, to: bytes.count, by: sector).first { start in
      let end = min(bytes.count, start + sector)
      return unsafe !UnsafeRawBufferPointer(rebasing: bytes[start..<end]).isAllZeros
    }
  }
}
