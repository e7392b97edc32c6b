import BlockCore
import Glibc
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

// The fuzz target: any bytes as an image. Built and run by scripts/fuzz, with libFuzzer and the
// address sanitizer; a trap, a wild access, a hang or too much memory ends the run.

/// Called by libFuzzer for each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ data: UnsafePointer<UInt8>, _ count: Int) -> CInt {
  let bytes = Array(UnsafeBufferPointer(start: data, count: count))
  check(bytes)
  runBlocking { () async -> Void in
    let answers = await read(bytes)
    await write(bytes, answers)
  }
  return 0
}

private func check(_ bytes: [UInt8]) {
  let image = MemoryBytes(bytes)
  _ = try? ImageCheck.run(image)
  precondition(image.bytes == bytes, "the check changed the image")
}

/// Opens the image read-only and reads all of it; ``SparseFile`` traps on a write.
private func read(_ bytes: [UInt8]) async -> Exercise.Answers {
  var options = ImageOptions()
  options.readOnly = true
  options.slotsPerWorker = 2
  options.cacheBytes = 4096
  let file = SparseFile(bytes, isReadOnly: true)
  guard let image = try? await Image.open(file, options: options) else { return [:] }
  let answers = await Exercise(image: image).readAll()
  try? await image.close()
  return answers
}

/// Opens the image for writing and asks for a little of everything, then opens it again.
private func write(_ bytes: [UInt8], _ answers: Exercise.Answers) async {
  let file = SparseFile(bytes)
  var options = ImageOptions()
  options.slotsPerWorker = 2
  options.cacheBytes = 4096
  guard let image = try? await Image.open(file, options: options) else {
    precondition(file.changes == 0, "a refused image was written")
    return
  }
  let exercise = Exercise(image: image)
  let size = image.size
  let cluster = image.geometry.clusterSize
  for place in exercise.places.prefix(24) {
    let end = min(place + 3 * cluster / 2 & ~511, place + 65536, size)
    if place >= end { continue }
    switch place / Exercise.chunk % 5 {
    case 0, 1: _ = await exercise.write(0x5a, place..<end)
    case 2: _ = await exercise.ask(.discard, place..<min(place + 4 * cluster, size))
    case 3: _ = await exercise.ask(.writeZeroes, place..<min(place + 3 * cluster, size))
    default: _ = await exercise.ask(.writeZeroes, place..<end, keepsAllocation: true)
    }
    if place % 3 == 0 { _ = await exercise.ask(.flush) }
  }
  await image.maintain()
  _ = await exercise.readAll()
  try? await image.close()
  _ = try? await Image.open(file, options: options)
}
