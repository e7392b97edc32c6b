"""Sections as tables of Markdown."""

TITLES = {
    "vm-7.2": "VM, Linux 7.2, images in RAM",
    "vm-6.12": "VM, Linux 6.12, images in RAM",
    "vm-7.2-disk": "VM, Linux 7.2, images on a virtio disk",
    "native-tmpfs": "Native, images on tmpfs",
    "native-disk": "Native, images on disk",
    "scaling": "Native, one queue and two",
    "open": "Native, cold open",
    "commands-tmpfs": "Image commands, images on tmpfs",
    "commands-disk": "Image commands, images on disk",
    "counts": "What a request costs",
}
NOTES = {
    "vm-7.2": "Clock: one guest instruction is one nanosecond, so the ratios repeat whatever else the host does, and the absolute "
              "figures say nothing. ext4 on brd, one queue, fio with io_uring and direct I/O. \"Copying\" is `--zero-copy off`; the "
              "empty image is written for ten times as long as the rest (1 s; for qublk raw it is a sparse file); cold reads go over a sparse "
              "image right after it was attached. The SCSI disk is scsi_debug, memory with WRITE SAME and UNMAP; the image lies straight "
              "on it, or on ext4. "
              "A row of qublk null moves no data.",
    "vm-6.12": "As above. This kernel has no zero copy: data is copied once.",
    "vm-7.2-disk": "An ordinary clock: these depend on the host's disk and on what else it does.",
    "native-tmpfs": "qublk bench and qemu-img bench with the same options at depth 64, their own times. Random means a step of "
                    "100003 blocks modulo the image, the same for both, for qemu-img bench has no other way to jump. qemu-img bench runs "
                    "with its default engine and with `-i io_uring`; the targets count against the better of both. It takes no "
                    "passphrase: beside LUKS reads stands `qemu-img convert` of the whole image to nothing (16 requests of 2 MiB). "
                    "Decompression uses a pool of threads in qemu-img. Beside direct reads stands fio on the file itself: what the "
                    "storage gives to anybody.",
    "native-disk": "The same on disk; the disk drifts, the runs are interleaved. Direct reads are bounded by the disk: see fio's.",
    "scaling": "Each queue has a thread. \"Page cache\" is a file on the disk's file system that is in memory as a whole: its reads "
               "end within the system call. On tmpfs the kernel never does that (its files cannot be asked not to wait), so a read goes "
               "to a thread of the kernel: one queue keeps both of this machine's cores busy, and a second one has none to gain. "
               "Decision 0012.",
    "open": "From exec to exit of a bench of one read in the middle of the image, after its page cache was dropped.",
    "commands-tmpfs": "Whole processes of `qublk` and `qemu-img` with the same words, in turn (`Benchmarks/commands`); qemu-img converts with "
                      "`-m 16 -W`. Processor seconds are user and system together, MiB the largest resident set. `cp` copies the file of "
                      "the source.",
    "commands-disk": "The same on disk, through the page cache; neither program syncs what it converts.",
    "counts": "Differences of two runs of 10000 and 110000 requests of 4 KiB at depth 64, for each request: callgrind and strace on "
              "`qublk bench`, and its own counters. `scripts/counts` holds these in CI.",
}


def number(value):
    if value is None:
        return "–"
    digits = 0 if value >= 100 else 1 if value >= 10 else 3
    return f"{value:.{digits}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def samples_table(section):
    """Works down, subjects across."""
    subjects = section.subjects()
    rows = [[work, *(number(section.median(subject, work)) for subject in subjects)] for work in section.works()]
    return table([f"{section.unit}, median", *subjects], rows)


def counts_table(section):
    """Subjects down, counts across."""
    rows = [[subject, *(number(section.median(subject, work)) for work in section.works())] for subject in section.subjects()]
    return table(["per request", *section.works()], rows)


def commands_table(section):
    """Works down; both programs and what the first gains across."""
    rows = []
    for work in section.works():
        row = [work]
        for what in ("seconds", "processor seconds"):
            row += [number(section.median(f"{subject}, {what}", work)) for subject in ("qublk", "qemu-img")]
            ratio = section.ratio(f"qemu-img, {what}", f"qublk, {what}", work)
            row.append("–" if ratio is None else f"{ratio:.2f}")
        row.append(number(section.median("cp, seconds", work)))
        rows.append(row + [number(section.median(f"{subject}, MiB", work)) for subject in ("qublk", "qemu-img")])
    return table(["", "qublk, s", "qemu-img, s", "qemu-img / qublk", "qublk, CPU s", "qemu-img, CPU s", "qemu-img / qublk", "cp, s",
                  "qublk, MiB", "qemu-img, MiB"], rows)


def ratio_table(section, subject, bases):
    bases = [base for base in bases if base in section.samples]
    rows = []
    for work in section.works():
        ratios = [section.ratio(subject, base, work) for base in bases]
        if any(ratios):
            rows.append([work, *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    return table([f"{subject} /", *bases], rows)


def provenance(section):
    facts = section.facts
    kernel = f"guest: Linux {facts['kernel']}; " if "kernel" in facts else ""
    quick = " **A quick run: for orientation only.**" if section.is_quick else ""
    return (f"`{section.command}`, {facts['date']}, commit {facts['commit']}; {kernel}medians of {section.rounds()} round(s), "
            f"median spread {section.spread() * 100:.1f} %; load average {facts['load']}.{quick}")


def section_text(section):
    parts = [f"### {TITLES[section.name]}", NOTES[section.name], provenance(section)]
    form = {"counts": counts_table, "commands": commands_table}.get(section.name.split("-")[0], samples_table)
    parts.append(form(section))
    if section.name.startswith("vm-"):
        parts.append(ratio_table(section, "qublk qcow2", ["qublk raw", "qublk null", "loop", "qemu-nbd"]))
        parts.append(ratio_table(section, "qublk raw", ["qublk null", "loop"]))
    if section.name.startswith("native-"):
        parts.append(ratio_table(section, "qublk bench", ["qemu-img bench", "qemu-img bench, io_uring", "qemu-img convert", "fio"]))
        parts.append(ratio_table(section, "qublk bench, 2 queues",
                                 ["qublk bench", "qemu-img bench", "qemu-img bench, io_uring", "qemu-img convert"]))
    if section.name == "scaling":
        parts.append(ratio_table(section, "2 queues", ["1 queue"]))
    return "\n\n".join(parts)
