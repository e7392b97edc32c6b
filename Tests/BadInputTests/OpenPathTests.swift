import BlockCore
import Glibc
import HostFiles
import QCOW2Engine
import QCOW2Format
import TestTools
import Testing
import Uring

extension BadInputTests {
  /// Paths that lead to no image.
  struct OpenPathTests {
    private func withDirectory(_ body: (String) throws -> Void) throws {
      let directory = try TemporaryDirectory(in: "/tmp")
      try withExtendedLifetime(directory) { try body(directory.path) }
    }

    private func failure(_ path: String, readOnly: Bool) -> HostFileError? {
      do throws(HostFileError) {
        _ = try RingHostFile.open(path, readOnly: readOnly)
        return nil
      } catch {
        return error
      }
    }

    @Test func aMissingFileIsENOENT() throws {
      try withDirectory { path in
        for readOnly in [true, false] {
          #expect(failure(path + "/file", readOnly: readOnly) == .open(.noEntry))
          #expect(failure("", readOnly: readOnly) == .open(.noEntry))
        }
      }
    }

    @Test func aDirectoryIsNoFile() throws {
      try withDirectory { path in
        #expect(failure(path, readOnly: true) == .notAFile)
        #expect(failure(path, readOnly: false) == .open(Errno(EISDIR)))
      }
    }

    @Test func aFIFOIsNoFileAndDoesNotBlock() throws {
      try withDirectory { path in
        try #require(mkfifo(path + "/fifo", 0o600) == 0)
        for readOnly in [true, false] {
          #expect(failure(path + "/fifo", readOnly: readOnly) == .notAFile)
        }
      }
    }

    @Test(arguments: ["/dev/null", "/dev/zero", "/proc/self/mem"])
    func aDeviceOrMagicFileIsNoImage(path: String) {
      let before = failure(path, readOnly: true)
      #expect(before == .notAFile || openFailure(path) != nil)
    }

    @Test(arguments: [0, 1, 4, 71, 72, 103, 104, 511, 512])
    func aShortFileIsRefusedWithAClearError(length: Int) throws {
      try withDirectory { path in
        let file = path + "/file"
        let bytes = Array(HandmadeImage().bytes[..<length])
        let descriptor = open(file, O_CREAT | O_WRONLY, 0o600)
        try #require(write(descriptor, bytes, length) == length)
        close(descriptor)
        let error = try #require(openFailure(file))
        #expect(error.message.contains("truncated"), "\(error.message)")
      }
    }

    private func openFailure(_ path: String) -> ImageError? {
      runBlocking { () async -> ImageError? in
        do {
          let file = try RingHostFile.open(path, readOnly: true)
          var options = ImageOptions()
          options.readOnly = true
          _ = try await Image.open(file, options: options)
          return nil
        } catch {
          return error as? ImageError
        }
      }
    }
  }
}
