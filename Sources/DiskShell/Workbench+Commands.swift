import BlockCore
import DiskImages
import Glibc
import QCOW2Engine
import QCOW2Tools
import Uring

/// Every action, and the commands that are no requests.
extension Workbench {
  func perform(_ action: IOAction) async throws(IOFailure) {
    switch action {
    case .help(let name): try help(name)
    case .quit: hasQuit = true
    case .abort: Glibc.abort()
    case .signal(let number): raise(number)
    case .sleep(let milliseconds): await loop.sleep(milliseconds: milliseconds)
    case .open(let opening):
      if opening.path == nil { throw .openOption(OpeningError("open: no file is named")) }
      try await open(opening)
    default:
      guard let disk else { throw .noFile }
      try await perform(action, on: disk)
    }
  }

  private func perform(_ action: IOAction, on disk: IODisk) async throws(IOFailure) {
    switch action {
    case .read(let read): try await self.read(read, from: disk)
    case .write(let write): try await self.write(write, to: disk)
    case .startRead(let read): startRead(read, from: disk)
    case .startWrite(let write): startWrite(write, to: disk)
    case .drain: await drain()
    case .flush:
      do throws(Errno) { try await disk.flush() } catch { throw .request("flush", error) }
    case .discard(let discard): try await self.discard(discard, on: disk)
    case .startDiscard(let discard):
      start { [self] () async throws(IOFailure) in try await self.discard(discard, on: disk) }
    case .truncate(let size, let places): try await truncate(disk, to: size, places)
    case .length: IOOutput.write(IOReport.size(disk.size) + "\n")
    case .allocation(let offset, let count): try await showAllocation(disk, offset, count)
    case .map: try await showMap(disk)
    case .close: try await close()
    case .reopen(let change): try await reopen(disk, change)
    case .zones: throw .missing(.zones)
    case .info: try await showInfo(disk)
    case .breakpoint: throw .missing(.faultInjection)
    case .help, .quit, .abort, .signal, .sleep, .open: break
    }
  }

  private func startRead(_ read: IORead, from disk: IODisk) {
    if read.isInvalid { return IOOutput.write("injecting invalid read request\n") }
    start { [self] () async throws(IOFailure) in try await self.read(read, from: disk) }
  }

  private func startWrite(_ write: IOWrite, to disk: IODisk) {
    if write.isInvalid { return IOOutput.write("injecting invalid write request\n") }
    start { [self] () async throws(IOFailure) in try await self.write(write, to: disk) }
  }

  private func help(_ name: String?) throws(IOFailure) {
    guard let name else {
      let lines = IOCommandSpec.all.map(\.usageLine)
      return IOOutput.write(
        lines.joined(separator: "\n") + "\n\nUse 'help commandname' for extended help.\n")
    }
    guard let command = IOCommandSpec.named(name) else { throw .noSuchHelp(name) }
    let details = command.details.map { " \($0)\n" }.joined()
    IOOutput.write("\(command.usageLine)\n\(details.isEmpty ? "" : "\n")\(details)")
  }

  /// Opens what is open again; if that fails, as it was.
  private func reopen(_ disk: IODisk, _ change: IOReopening) async throws(IOFailure) {
    let before = disk.opening
    let opening = try IOFailure.opening { () throws(OpeningError) in
      var opening = before
      if let isReadOnly = change.isReadOnly { opening.isReadOnly = isReadOnly }
      if let cache = change.cache { try opening.setCache(cache) }
      for list in change.lists { try opening.apply(list: list) }
      return opening
    }
    if before.usesOverlay { throw .disk("an overlay that is thrown away cannot be opened again") }
    try await close()
    do throws(IOFailure) { try await open(opening) } catch {
      try await open(before)
      throw error
    }
  }

  private func truncate(
    _ disk: IODisk, to size: UInt64, _ places: Preallocation
  ) async throws(IOFailure) {
    guard size % 512 == 0 else { throw .disk("The new size must be a multiple of 512") }
    await drain()
    try await disk.resize(to: size, places)
  }
}
