// swift-tools-version: 6.2
import PackageDescription

/// The settings that every Swift target of the package shares.
let testSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
  .treatAllWarnings(as: .error),
  // Small helpers of one module must be inlined into the data path of another (docs/design.md, section 2).
  .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
]

/// With QUBLK_TESTS=fast a debug build optimises what the tests spend their time in, and keeps
/// assertions: the tests themselves would take longer to compile than they gain.
let fastSettings: [SwiftSetting] =
  Context.environment["QUBLK_TESTS"] == "fast"
  ? [
    .unsafeFlags(
      ["-O", "-wmo", "-num-threads", "2", "-assert-config", "Debug"], .when(configuration: .debug))
  ] : []

/// The program's own modules mark every unsafe expression, too.
let settings: [SwiftSetting] = testSettings + fastSettings + [.strictMemorySafety()]

/// The settings of the C shims.
let cSettings: [CSetting] = [
  .unsafeFlags(["-Wall", "-Wextra", "-Werror", "-std=gnu11"])
]

/// QUBLK_PACKAGE=engine leaves out what the engine's own tests do not need: the thread sanitizer's
/// build is of these only.
let isEngineOnly = Context.environment["QUBLK_PACKAGE"] == "engine"
let engineTargets = [
  "CPlatform", "CLiburing", "CUring", "CZlib", "CLibdeflate", "CZstd", "CCrypto", "BlockCore",
  "JSON", "Uring",
  "Serving", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools", "TestTools", "TestSupport",
  "CSteps", "QCOW2EngineTests",
]

/// QUBLK_PACKAGE=jobs leaves out the tests of everything but the image jobs and commands.
let isJobsOnly = Context.environment["QUBLK_PACKAGE"] == "jobs"
let otherTests = [
  "UringTests", "ServingTests", "UblkTests", "BlockCoreTests", "JSONTests", "QCOW2CodecTests",
  "QCOW2FormatTests", "QCOW2EngineTests", "InteropTests", "BadInputTests",
]

let package = Package(
  name: "qublk",
  products: [.executable(name: "qublk", targets: ["qublk"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
  ],
  targets: [
    .target(name: "CPlatform", path: "CShims/CPlatform", cSettings: cSettings),
    .target(name: "CUblk", path: "CShims/CUblk", cSettings: cSettings),
    .systemLibrary(
      name: "CLiburing", path: "CShims/CLiburing", pkgConfig: "liburing",
      providers: [.apt(["liburing-dev"])]),
    .target(
      name: "CUring", dependencies: ["CLiburing"], path: "CShims/CUring", cSettings: cSettings),

    .systemLibrary(
      name: "CZlib", path: "CShims/CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
    // Looks for libdeflate at run time; links nothing.
    .target(name: "CLibdeflate", path: "CShims/CLibdeflate", cSettings: cSettings),
    .systemLibrary(
      name: "CZstd", path: "CShims/CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
    .systemLibrary(
      name: "CCrypto", path: "CShims/CCrypto", pkgConfig: "libcrypto",
      providers: [.apt(["libssl-dev"])]),

    .target(name: "BlockCore", dependencies: ["CPlatform"], swiftSettings: settings),
    .target(name: "JSON", swiftSettings: settings),
    .target(name: "QCOW2Format", dependencies: ["BlockCore"], swiftSettings: settings),
    .target(
      name: "QCOW2Codec",
      dependencies: ["BlockCore", "CPlatform", "CZlib", "CLibdeflate", "CZstd", "CCrypto"],
      swiftSettings: settings),
    .target(
      name: "QCOW2Engine", dependencies: ["BlockCore", "QCOW2Format", "QCOW2Codec"],
      swiftSettings: settings),
    .target(
      name: "QCOW2Tools",
      dependencies: ["BlockCore", "JSON", "QCOW2Format", "QCOW2Codec", "CPlatform"],
      swiftSettings: settings),
    .target(
      name: "DiskImages",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools",
        "HostFiles", "CPlatform",
      ],
      swiftSettings: settings),
    .target(
      name: "Uring", dependencies: ["BlockCore", "CUring", "CPlatform"], swiftSettings: settings),
    .target(
      name: "HostFiles", dependencies: ["BlockCore", "Uring", "CPlatform"],
      swiftSettings: settings),
    .target(name: "Serving", dependencies: ["BlockCore", "Uring"], swiftSettings: settings),
    .target(
      name: "Ublk",
      dependencies: ["BlockCore", "Serving", "Uring", "CUblk", "CUring", "CPlatform"],
      swiftSettings: settings),
    .target(
      name: "Reports", dependencies: ["BlockCore", "JSON", "QCOW2Engine", "Serving", "Uring"],
      swiftSettings: settings),
    .target(
      name: "ImageJobs",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Format", "QCOW2Engine", "QCOW2Tools", "DiskImages", "HostFiles",
        "Uring", "Serving", "CPlatform",
      ],
      swiftSettings: settings),
    .target(
      name: "DiskShell",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Engine", "QCOW2Tools", "DiskImages", "HostFiles",
        "ImageJobs", "Uring", "Serving", "CPlatform",
      ],
      swiftSettings: settings),
    .target(
      name: "Bench",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Engine", "DiskImages", "HostFiles", "Uring", "Serving",
        "Reports",
      ],
      swiftSettings: settings),
    .target(
      name: "Daemon",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools", "DiskImages",
        "HostFiles",
        "ImageJobs", "Uring", "Ublk", "Reports", "CPlatform",
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: settings),
    .executableTarget(
      name: "qublk",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools",
        "DiskImages", "HostFiles", "ImageJobs", "Uring", "Ublk", "Reports", "DiskShell", "Bench",
        "Daemon", "CPlatform",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),

    // What every test may need: seeds, numbers that come again, programs of the host.
    .target(
      name: "TestTools", dependencies: ["CPlatform"], path: "Tests/TestTools",
      swiftSettings: testSettings + fastSettings),
    .target(name: "CSteps", path: "Tests/CSteps", cSettings: cSettings),
    .target(
      name: "TestSupport",
      dependencies: [
        "BlockCore", "Serving", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "TestTools",
      ],
      path: "Tests/TestSupport", swiftSettings: testSettings + fastSettings),
    // A queue's own worker without a driver, for scripts/counts. No product.
    .executableTarget(
      name: "countedqueue",
      dependencies: [
        "BlockCore", "QCOW2Engine", "DiskImages", "HostFiles", "Uring", "Serving", "Ublk",
      ],
      path: "Tests/countedqueue", swiftSettings: testSettings),
    // Tries what a process in the daemon's sandbox may do, and may not, for SandboxTests. No product.
    .executableTarget(
      name: "confined",
      dependencies: [
        "BlockCore", "DiskImages", "HostFiles", "ImageJobs", "JSON", "QCOW2Engine", "Serving",
        "Ublk", "Uring", "Daemon", "CProbes",
      ],
      path: "Tests/confined", swiftSettings: testSettings + fastSettings),
    .target(
      name: "CProbes", dependencies: ["CLiburing"], path: "Tests/CProbes", cSettings: cSettings),
    // A supervisor whose servers serve nothing, for its tests: a fork needs a process with one thread. No product.
    .executableTarget(
      name: "supervised",
      dependencies: ["BlockCore", "CPlatform", "Daemon", "DiskImages", "HostFiles"],
      path: "Tests/supervised", swiftSettings: testSettings),
    .testTarget(
      name: "UringTests",
      dependencies: ["BlockCore", "Uring", "HostFiles", "CPlatform", "TestTools"],
      swiftSettings: testSettings),
    .testTarget(
      name: "ServingTests", dependencies: ["BlockCore", "Serving", "Uring"],
      swiftSettings: testSettings),
    .testTarget(
      name: "UblkTests",
      dependencies: ["BlockCore", "Serving", "Uring", "Ublk", "CUblk", "CPlatform"],
      swiftSettings: testSettings),
    .testTarget(
      name: "BlockCoreTests", dependencies: ["BlockCore", "TestTools"], swiftSettings: testSettings),
    .testTarget(
      name: "JSONTests", dependencies: ["JSON", "TestTools"], swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2CodecTests", dependencies: ["BlockCore", "QCOW2Codec", "TestTools"],
      swiftSettings: testSettings),
    .testTarget(
      name: "DiskImagesTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "DiskImages", "HostFiles", "Uring",
        "Serving", "TestTools",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "ImageJobsTests",
      dependencies: [
        "BlockCore", "JSON", "QCOW2Format", "QCOW2Engine", "QCOW2Tools", "DiskImages", "HostFiles",
        "ImageJobs", "Uring", "TestSupport", "TestTools",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2FormatTests",
      dependencies: ["BlockCore", "QCOW2Format", "TestSupport", "TestTools"],
      swiftSettings: testSettings),
    .testTarget(
      name: "CommandLineTests",
      dependencies: [
        "BlockCore", "JSON", "HostFiles", "CPlatform", "QCOW2Engine", "QCOW2Tools", "DiskImages",
        "ImageJobs", "Serving", "Uring", "Reports", "DiskShell", "Bench", "Daemon", "qublk",
        "confined", "supervised", "TestTools",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2EngineTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Tools", "QCOW2Engine", "TestSupport",
        "TestTools", "CSteps",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2ToolsTests",
      dependencies: ["BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Tools", "TestTools"],
      swiftSettings: testSettings),
    .testTarget(
      name: "InteropTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "DiskImages", "HostFiles", "Uring",
        "CPlatform", "TestTools",
      ],
      swiftSettings: testSettings),
    // qublk beside qemu-img: runs both programs.
    .testTarget(
      name: "TwinTests", dependencies: ["JSON", "TestTools", "qublk"], swiftSettings: testSettings),
    .testTarget(
      name: "BadInputTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Engine", "QCOW2Tools", "HostFiles", "Uring", "TestTools",
      ],
      swiftSettings: testSettings),
  ]
)

if isEngineOnly {
  package.products = []
  package.dependencies = []
  package.targets.removeAll { !engineTargets.contains($0.name) }
}
if isJobsOnly { package.targets.removeAll { otherTests.contains($0.name) } }
