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
  // Small helpers of one module must be inlined into the data path of another (DESIGN.md, section 2).
  .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
]

/// The program's own modules mark every unsafe expression, too.
let settings: [SwiftSetting] = testSettings + [.strictMemorySafety()]

/// The settings of the C shims.
let cSettings: [CSetting] = [
  .unsafeFlags(["-Wall", "-Wextra", "-Werror", "-std=gnu11"])
]

let package = Package(
  name: "qublk",
  products: [.executable(name: "qublk", targets: ["qublk"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0")
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
    .target(name: "QCOW2Format", dependencies: ["BlockCore"], swiftSettings: settings),
    .target(
      name: "QCOW2Codec", dependencies: ["BlockCore", "CPlatform", "CZlib", "CLibdeflate", "CZstd", "CCrypto"],
      swiftSettings: settings),
    .target(
      name: "QCOW2Engine", dependencies: ["BlockCore", "QCOW2Format", "QCOW2Codec"],
      swiftSettings: settings),
    .target(
      name: "QCOW2Tools", dependencies: ["BlockCore", "QCOW2Format", "QCOW2Codec"],
      swiftSettings: settings),
    .target(
      name: "DiskImages",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools", "HostFiles",
        "CPlatform",
      ],
      swiftSettings: settings),
    .target(
      name: "Uring", dependencies: ["BlockCore", "CUring", "CPlatform"], swiftSettings: settings),
    .target(
      name: "HostFiles", dependencies: ["BlockCore", "Uring", "CPlatform"],
      swiftSettings: settings),
    .target(
      name: "Ublk", dependencies: ["BlockCore", "Uring", "CUblk", "CUring", "CPlatform"],
      swiftSettings: settings),
    .executableTarget(
      name: "qublk",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "QCOW2Tools", "DiskImages",
        "HostFiles", "Uring", "Ublk", "CPlatform",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),

    .target(
      name: "TestSupport",
      dependencies: ["BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine"],
      path: "Tests/TestSupport", swiftSettings: testSettings),
    // Serves a plain file through both planes, for the tests in the virtual machine. No product.
    .executableTarget(
      name: "ublkprobe", dependencies: ["BlockCore", "HostFiles", "Uring", "Ublk"],
      path: "Tests/ublkprobe", swiftSettings: testSettings),
    .testTarget(
      name: "UringTests", dependencies: ["BlockCore", "Uring", "HostFiles", "CPlatform"],
      swiftSettings: testSettings),
    .testTarget(
      name: "UblkTests", dependencies: ["BlockCore", "Uring", "Ublk", "CUblk", "CPlatform"],
      swiftSettings: testSettings),
    .testTarget(
      name: "BlockCoreTests", dependencies: ["BlockCore"], swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2CodecTests", dependencies: ["BlockCore", "QCOW2Codec"],
      swiftSettings: testSettings),
    .testTarget(
      name: "DiskImagesTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "DiskImages", "HostFiles", "Uring",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2FormatTests", dependencies: ["BlockCore", "QCOW2Format", "TestSupport"],
      swiftSettings: testSettings),
    .testTarget(
      name: "CommandLineTests",
      dependencies: [
        "BlockCore", "HostFiles", "CPlatform", "QCOW2Engine", "Ublk", "Uring", "qublk",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2EngineTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Tools", "QCOW2Engine", "TestSupport",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "QCOW2ToolsTests", dependencies: ["BlockCore", "QCOW2Format", "QCOW2Tools"],
      swiftSettings: testSettings),
    .testTarget(
      name: "InteropTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Codec", "QCOW2Engine", "DiskImages", "HostFiles", "Uring",
        "CPlatform",
      ],
      swiftSettings: testSettings),
    .testTarget(
      name: "BadInputTests",
      dependencies: [
        "BlockCore", "QCOW2Format", "QCOW2Engine", "QCOW2Tools", "HostFiles", "Uring",
      ],
      swiftSettings: testSettings),
  ]
)
