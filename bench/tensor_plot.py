"""A report on servers as a picture: requests per second and waits over callers."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.tensor_report import Report
from bench.tensor_servers import OURS

_COLOURS = {"Outpost": "tab:blue", "MLServer": "tab:orange", "Triton": "tab:green"}
"""By the first word of a name."""

_RATE, _SLOWEST = 0, 2
"""Which of a report's speeds are drawn."""


def draw(report: Report, path: Path) -> None:
    """Write the picture."""
    mpl.use("Agg")
    figure, grid = plt.subplots(
        len(report.models), 2, figsize=(12, 8), layout="constrained", squeeze=False
    )
    for (rates, waits), model in zip(grid, report.models, strict=True):
        _draw(rates, report, model, _RATE)
        rates.set_ylabel("requests/s (up is better)")
        rates.set_ylim(bottom=0)
        _draw(waits, report, model, _SLOWEST)
        waits.set_ylabel("p99, ms (down is better)")
        waits.set_yscale("log")
    handles, labels = grid[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Tensor servers on two cores, medians")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw(axes: Any, report: Report, model: str, which: int) -> None:
    counts = list(report.plan.callers)
    measures = [report.speeds(cell)[which] for cell in report.cells(model)]
    for name in report.names:
        axes.plot(counts, [measure.median(name) for measure in measures], label=name, **_look(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("callers side by side")
    axes.set_title(model)
    axes.grid(alpha=0.3)


def _look(name: str) -> dict[str, Any]:
    family, _, batching = name.partition(",")
    return {
        "color": _COLOURS[family],
        "marker": "s" if batching else "o",
        "linestyle": "--" if batching else "-",
        "linewidth": 2.5 if name == OURS else 1.5,
    }
