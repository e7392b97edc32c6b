"""The few rows that the README quotes."""
from report import tables

BEGIN, END = "<!-- rows of docs/PERFORMANCE.md, put here by Benchmarks/render -->", "<!-- end of rows -->"


def vm_table(section):
    works = ["4k randread, QD 1", "4k randread, QD 32", "4k randwrite, QD 32", "512k read, QD 8", "512k write, QD 8",
             "4k randwrite, QD 32, empty image", "4k randwrite, QD 32, empty image on a SCSI disk",
             "4k randwrite, QD 32, empty image on ext4 on a SCSI disk",
             "4k randread, QD 32, cold, 64 GiB", "4k randwrite and fsync, 4 jobs"]
    rows = []
    for work in works:
        values = [section.median("qublk qcow2", work)]
        ratios = [section.ratio("qublk qcow2", base, work) for base in ("qublk raw", "qublk null", "loop", "qemu-nbd")]
        rows.append([work, tables.number(values[0]), *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    return tables.table(["", "qublk qcow2, IOPS", "/ qublk raw", "/ qublk null", "/ kernel loop", "/ qemu-nbd"], rows)


def native_table(results):
    rows = []
    for place in ("tmpfs", "disk"):
        section = results.sections.get(f"native-{place}")
        if not section:
            continue
        for work in ("4k random reads", "4k random writes in place", "4k writes into new clusters", "64k reads, zlib",
                     "64k reads, zstd"):
            cells = [section.median(name, work) for name in ("qublk bench", "qemu-img bench", "qemu-img bench, io_uring")]
            best = max(value for value in cells[1:] if value)
            rows.append([f"{work}, {place}", *map(tables.number, cells), f"{cells[0] / best:.2f}"])
    return tables.table(["requests per second", "qublk bench", "qemu-img bench", "qemu-img bench -i io_uring", "qublk / the better"],
                        rows)


def counts_table(section):
    works = ("read", "write in place", "write into a new cluster", "raw read", "raw write")
    counts = ("instructions", "mallocs", "retains", "releases", "io_uring_enter", "host I/Os")
    rows = [[work, *(tables.number(section.median(work, count)) for count in counts)] for work in works]
    return tables.table(["per 4 KiB request", *counts], rows)


def text(results):
    vm = results.sections["vm-7.2"]
    return "\n\n".join([
        f"In the VM, deterministic clock (one instruction is one nanosecond), Linux {vm.facts.get('kernel', '7.2')}, ext4 on RAM, one "
        f"queue, fio with io_uring and direct I/O, medians of {vm.rounds()} rounds. Ratios count, not absolute figures:",
        vm_table(vm), "Natively, depth 64, the same requests, medians of interleaved runs; and what a request costs in user space:",
        native_table(results), counts_table(results.sections["counts"])])


def update(path, results):
    """Replaces what is between the two marks of the README."""
    with open(path, encoding="utf-8") as file:
        old = file.read()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{before}{BEGIN}\n\n{text(results)}\n\n{END}{after}")
