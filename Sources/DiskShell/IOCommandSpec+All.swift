extension IOCommandSpec {
  /// Every command, by name.
  static let all: [IOCommandSpec] =
    [
      IOCommandSpec(
        name: "abort", summary: "ends the program at once, as a crash would", needsFile: false
      ) { (_, _) in .abort },
      IOCommandSpec(
        name: "aio_discard", syntax: "[-Cq] off len",
        summary: "starts a discard and does not wait for it", details: [printingHelp, asyncHelp],
        words: 2...Int.max, needsWriting: true, parse: IOParser.startDiscard),
      IOCommandSpec(
        name: "aio_flush", summary: "waits for every asynchronous request"
      ) { (_, _) in .drain },
      IOCommandSpec(
        name: "aio_read", syntax: "[-Ciqrv] [-P pattern] off len [len..]",
        summary: "starts a read and does not wait for it",
        details: [printingHelp, patternHelp, "-v  show the bytes", invalidHelp, asyncHelp],
        words: 2...Int.max, parse: IOParser.startRead),
      IOCommandSpec(
        name: "aio_write", syntax: "[-Cfiqruz] [-P pattern] off len [len..]",
        summary: "starts a write and does not wait for it",
        details: [printingHelp, fillHelp, fuaHelp, zeroHelp, invalidHelp, asyncHelp],
        words: 2...Int.max, needsWriting: true, parse: IOParser.startWrite),
      IOCommandSpec(
        name: "alloc", alias: "a", syntax: "offset [count]",
        summary: "tells how much of a range the image itself holds", words: 1...2,
        parse: IOParser.allocation),
      IOCommandSpec(
        name: "break", syntax: "event tag", summary: "needs fault injection", words: 2...2
      ) { (_, _) in .breakpoint },
      IOCommandSpec(
        name: "close", alias: "c", summary: "closes the open image"
      ) { (_, _) in .close },
      IOCommandSpec(
        name: "discard", alias: "d", syntax: "[-Cq] off len", summary: "discards a range",
        details: [printingHelp], words: 2...Int.max, needsWriting: true,
        parse: IOParser.discard),
      IOCommandSpec(
        name: "flush", alias: "f", summary: "makes everything written so far durable"
      ) { (_, _) in .flush },
      IOCommandSpec(
        name: "help", alias: "?", syntax: "[command]",
        summary: "explains one command, or lists all",
        words: 0...1, needsFile: false
      ) { (words, _) in .help(words.first) },
      IOCommandSpec(
        name: "info", alias: "i", summary: "shows the facts about the open image"
      ) { (_, _) in .info },
      IOCommandSpec(
        name: "length", alias: "l", summary: "shows the size of the disk"
      ) { (_, _) in .length },
      IOCommandSpec(
        name: "map", summary: "shows which ranges the image itself holds"
      ) { (_, _) in .map },
      IOCommandSpec(
        name: "open", alias: "o", syntax: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        summary: "opens an image",
        details: [
          "-r  read-only", "-s  writes go to an overlay that is thrown away", "-C  copy on read",
          "-n  past the host's page cache, as -t none",
          "-U  without locks; needs -r", "-k, -i mode  ignored: all I/O uses io_uring",
          "-t  none, writeback, writethrough, directsync or unsafe", "-d  off or unmap",
          "-o  driver=qcow2 or driver=raw, file.filename=path, and what --image-opts takes",
        ],
        words: 1...Int.max, needsFile: false, parse: IOParser.open),
      IOCommandSpec(
        name: "quit", alias: "q", summary: "ends the program", words: 0...Int.max, needsFile: false
      ) { (_, _) in .quit },
      IOCommandSpec(
        name: "read", alias: "r", syntax: "[-bCqrv] [-P pattern [-s off] [-l len]] off len",
        summary: "reads a range",
        details: [
          "-b  the VM state, not the disk", printingHelp, patternHelp,
          "-s, -l  verify only len bytes from off on, counted from the start of the range",
          "-v  show the bytes", "-a, -p, -r  ignored",
        ], words: 2...Int.max, parse: IOParser.read),
      IOCommandSpec(
        name: "readv", syntax: "[-Cqrv] [-P pattern] off len [len..]",
        summary: "reads a range given in parts",
        details: [printingHelp, patternHelp, "-v  show the bytes"], words: 2...Int.max,
        parse: IOParser.readVector),
      IOCommandSpec(
        name: "remove_break", syntax: "tag", summary: "needs fault injection", words: 1...1
      ) { (_, _) in .breakpoint },
      IOCommandSpec(
        name: "reopen", syntax: "[(-r|-w)] [-c cache] [-o options]",
        summary: "opens the image again, with other options",
        details: ["-r  read-only", "-w  for writing", "-c  the cache mode", "-o  as of open"],
        words: 0...Int.max, parse: IOParser.reopen),
      IOCommandSpec(
        name: "resume", syntax: "tag", summary: "needs fault injection", words: 1...1
      ) { (_, _) in .breakpoint },
      IOCommandSpec(
        name: "sigraise", syntax: "signal", summary: "sends the program a signal", words: 1...1,
        needsFile: false, parse: IOParser.signal),
      IOCommandSpec(
        name: "sleep", syntax: "milliseconds", summary: "waits; requests go on meanwhile",
        words: 1...1, needsFile: false
      ) { (words, _) throws(IOFailure) in .sleep(try IONumber.milliseconds(words.first ?? "")) },
      IOCommandSpec(
        name: "truncate", alias: "t", syntax: "[-m prealloc_mode] size",
        summary: "changes the size of the disk",
        words: 1...3, needsWriting: true, parse: IOParser.truncate),
      IOCommandSpec(
        name: "wait_break", syntax: "tag", summary: "needs fault injection", words: 1...1
      ) { (_, _) in .breakpoint },
      IOCommandSpec(
        name: "write", alias: "w", syntax: "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        summary: "writes a range",
        details: [
          "-b  the VM state, not the disk", "-c  compressed", printingHelp, fillHelp,
          "-s  fill with the bytes of a file, again and again", fuaHelp, zeroHelp,
          "-n  with -z: fail rather than write zeros as data", "-p, -r  ignored",
        ], words: 2...Int.max, needsWriting: true, parse: IOParser.write),
      IOCommandSpec(
        name: "writev", syntax: "[-Cfqr] [-P pattern] off len [len..]",
        summary: "writes a range given in parts", details: [printingHelp, fillHelp, fuaHelp],
        words: 2...Int.max, needsWriting: true, parse: IOParser.writeVector),
    ] + ["append", "close", "finish", "open", "report", "reset"].map(zoneCommand)

  private static func zoneCommand(_ action: String) -> IOCommandSpec {
    IOCommandSpec(
      name: "zone_\(action)", syntax: "offset len", summary: "needs a zoned device",
      words: 2...Int.max
    ) { (_, _) in .zones }
  }

  private static let printingHelp = "-q  print failures only; -C  print numbers with commas"
  private static let patternHelp = "-P  verify that every byte has this value"
  private static let fillHelp = "-P  fill with this byte in place of 0xcd"
  private static let fuaHelp = "-f  durable when it is done"
  private static let zeroHelp = "-z  write zeros; -u with -z: space may be given back"
  private static let invalidHelp = "-i  count as invalid, do nothing"
  private static let asyncHelp = "The command has succeeded when the request was started."
}
