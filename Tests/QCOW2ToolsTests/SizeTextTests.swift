import QCOW2Tools
import Testing

/// qemu-img 7.2's answers, taken down by hand.
@Suite struct SizeTextTests {
  @Test(arguments: [
    ("0", 0), ("100", 100), (" 100", 100), ("+1k", 1024), ("100b", 100), ("100B", 100),
    ("1.5G", 3 << 29), ("2.3k", 2355), ("0.3333333333k", 341), ("1.k", 1024), ("0x400", 1024),
    ("64K", 65536), ("7E", 7 << 60), ("1T", 1 << 40), ("3P", 3 << 50), ("2m", 2 << 20),
  ]) func sizesAreReadAsQEMUDoes(text: String, bytes: Int) {
    #expect(SizeText.parse(text) == UInt64(bytes))
  }

  @Test(arguments: [
    "", "-1", "1e3", "2.3", "2.3b", "0.5", ".5k", "100kb", "k", "1X", "16E", "0x", "0x-1", "1 k",
    "99999999999999999999", "0xg", "--1", "1.5.5k", "①", "١",
  ]) func otherTextsAreNoSizes(text: String) {
    #expect(SizeText.parse(text) == nil)
  }

  @Test(arguments: [
    (0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (200_704, "196 KiB"), (3_129_344, "2.98 MiB"),
    (1_610_612_736, "1.5 GiB"), (1000, "0.977 KiB"), (1_151_795_604_700_004_352, "0.999 EiB"),
  ]) func sizesArePrintedAsQEMUDoes(bytes: Int, text: String) {
    #expect(SizeText.short(UInt64(bytes)) == text)
  }
}
