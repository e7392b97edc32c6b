"""Plots of the medians, as SVG that is the same for the same results."""
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plot  # noqa: E402  (after the choice of what draws)

plot.rcParams.update({"svg.hashsalt": "qublk", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
COLOURS = {
    "raw": "#bbbbbb", "loop": "#888888", "qublk null": "#9ecae1", "qublk raw": "#4292c6", "qublk qcow2": "#08519c",
    "qublk qcow2, copying": "#6baed6", "qemu-nbd": "#e6550d", "qublk bench": "#08519c", "qublk bench, 2 queues": "#4292c6",
    "qemu-img bench": "#e6550d", "qemu-img bench, io_uring": "#fdae6b", "qemu-img convert": "#a63603",
    "fio": "#bbbbbb",
}


def bars(path, section, works, title, logarithmic=False):
    """Groups of bars: a group per work, a bar per subject that has it."""
    works = [work for work in works if work in section.works()]
    subjects = [name for name in section.subjects() if any(section.median(name, work) for work in works)]
    if not works or not subjects:
        return None
    figure, axes = plot.subplots(figsize=(9, 3.6))
    width = 0.84 / len(subjects)
    for index, subject in enumerate(subjects):
        places, heights = [], []
        for place, work in enumerate(works):
            value = section.median(subject, work)
            if value is not None:
                places.append(place - 0.42 + (index + 0.5) * width)
                heights.append(value)
        axes.bar(places, heights, width * 0.92, label=subject, color=COLOURS.get(subject))
    axes.set_xticks(range(len(works)), [work.replace(", ", ",\n", 1) for work in works])
    axes.set_ylabel(section.unit)
    axes.set_title(title, loc="left")
    if logarithmic:
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(subjects) > 5 else 1, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, path)


def targets(path, rows, title):
    """How near each ratio is to its target: measured / target, 1 is met."""
    rows = [(name, share) for name, share in rows if share is not None]
    if not rows:
        return None
    figure, axes = plot.subplots(figsize=(9, 0.6 + 0.19 * len(rows)))
    names, shares = zip(*reversed(rows))
    axes.barh(range(len(rows)), shares, color=["#31a354" if share >= 1 else "#de2d26" for share in shares], height=0.7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_xlim(0, max(2, min(4, max(shares))))
    axes.set_title(title, loc="left")
    return save(figure, path)


def save(figure, path):
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plot.close(figure)
    return os.path.basename(path)
