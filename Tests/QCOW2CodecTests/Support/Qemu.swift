import TestTools
import Testing

/// The other implementation.
enum Qemu {
  static let reason: Comment = "needs qemu-img and qemu-io in the PATH"

  /// Makes an encrypted image.
  static func create(_ path: String, secret: String, options: String, format: String = "qcow2")
    throws
  {
    try mustRunQEMU([
      "qemu-img", "create", "-q", "-f", format, "--object", "secret,id=s,data=\(secret)", "-o",
      options, path, "1M",
    ])
  }

  static func io(_ image: String, secret: String, _ commands: [String]) throws {
    try mustRunQEMUIO(
      ["--object", "secret,id=s,data=\(secret)"] + commands.flatMap { ["-c", $0] }
        + ["--image-opts", image])
  }
}
