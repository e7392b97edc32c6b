import JSON
import TestTools

extension Sample {
  /// What is told of the bitmaps, and their bits: where a copy of what one names has clusters.
  func bitmaps(of image: String = Sample.name) throws -> [String] {
    let info = try Tools.mustQEMU(
      "qemu-img", ["info", "--output=json", image], in: path)
    let list = JSONParser.parse(info)?["format-specific"]?["data"]?["bitmaps"]?.array ?? []
    return try list.map { bitmap in
      guard let name = bitmap["name"]?.string else { return "no name" }
      let delta = "delta.qcow2"
      try mustRun("rm", "-f", "\(path)/\(delta)")
      let backup = try Tools.qublk(
        ["backup", "-q", "--since", name, image, delta], in: path)
      guard backup.succeeded else { return "\(bitmap.line): \(backup.errors)" }
      let map = try Tools.mustQEMU("qemu-img", ["map", "--output=json", delta], in: path)
      let ranges = JSONParser.parse(map)?.array ?? []
      var present: [Range<UInt64>] = []
      for range in ranges where range["present"]?.bool == true {
        let start = range["start"]?.unsigned ?? 0
        let end = start + (range["length"]?.unsigned ?? 0)
        // Where the data lies in the file, and what of it is zeros, is not the bitmap's.
        if let last = present.last, last.upperBound == start {
          present[present.count - 1] = last.lowerBound..<end
        } else {
          present.append(start..<end)
        }
      }
      return bitmap.line + "\(present)"
    }
  }
}
