"""A report as a picture: speed over streams, and speed against quality."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.contestants import COMPARED
from bench.report import EQUAL_QUALITY, Report
from bench.workers import THREADS

_LOOKS = {
    "Outpost": ("tab:blue", ("o", "*", "D")),
    "llama.cpp": ("tab:orange", ("s", "P")),
    "genai": ("tab:green", ("^", "v")),
    "OpenVINO": ("tab:purple", ("<", ">")),
}
"""By the first word of a name: a colour, and a marker for each of its contestants."""


def draw(report: Report, path: Path) -> None:
    """Write the picture."""
    mpl.use("Agg")
    figure, (streams, quality) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    _draw_streams(streams, report)
    _draw_quality(quality, report)
    handles, labels = streams.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Gemma 3 270M on {THREADS} CPU threads, medians")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_streams(axes: Any, report: Report) -> None:
    counts = list(report.plan.streams)
    for name in report.names:
        speeds = [measure.median(name) for measure in report.decodes()]
        axes.plot(counts, speeds, label=name, **_look(report, name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("streams side by side")
    axes.set_ylabel("tokens/s, all streams together")
    axes.set_ylim(bottom=0)
    axes.set_title("Speed over streams")
    axes.grid(alpha=0.3)


def _draw_quality(axes: Any, report: Report) -> None:
    speeds = report.decodes()[0]
    for name in report.names:
        axes.plot(100 * report.increase(name), speeds.median(name), **_look(report, name))
    axes.axvline(100 * EQUAL_QUALITY, color="tab:red", linestyle=":", linewidth=1)
    axes.annotate(
        "equal quality ends here",
        (100 * EQUAL_QUALITY, 0),
        xytext=(-10, 6),
        rotation=90,
        textcoords="offset points",
        fontsize=8,
        color="tab:red",
    )
    axes.set_xlabel("perplexity above the checkpoint's, % (left is better)")
    axes.set_ylabel(f"tokens/s, {report.plan.streams[0]} stream (up is better)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.set_title("Speed against quality")
    axes.grid(alpha=0.3)


def _look(report: Report, name: str) -> dict[str, Any]:
    family = name.partition(" ")[0]
    colour, markers = _LOOKS[family]
    number = [other for other in report.names if other.startswith(family)].index(name)
    return {
        "color": colour,
        "marker": markers[number],
        "markersize": 8,
        "linestyle": ("-", "--", ":")[number],
        "linewidth": 2.5 if name in COMPARED else 1.5,
        "markerfacecolor": colour if number == 0 else "white",
    }
