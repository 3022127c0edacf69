"""Sizes of updates, and the time that they take, as Markdown."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.tables import table
from bench.update_codings import FULL
from bench.update_pairs import Pair
from bench.update_phases import Update

Sizes = Sequence[tuple[Pair, Mapping[str, int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """An update that boxes took, from a folder and over a slow link."""

    title: str
    target: str
    grid: str
    taken: Update
    slow: Update


_QUALITY = {
    "perplexity_source": ".4f",
    "perplexity": ".4f",
    "perplexity_increase": "+.2%",
    "top1_agreement": ".1%",
}


def markdown(measured: Sizes, versions: Mapping[str, str]) -> str:
    """Return all tables and what they mean."""
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    caption = (
        "Bytes of an update of Gemma 3 270M, all files of the bundle, by who sends it. "
        f"{platform.machine()}, Python {platform.python_version()}; {peers}. "
        "What is what: [README.md](../README.md)."
    )
    sections = [
        f"# Sizes of updates\n\n{caption}",
        f"## Megabytes\n\n{_sizes(measured)}",
        f"## Share of the whole bundle\n\n{_shares(measured)}",
        f"## Quality\n\n{_quality(measured)}",
    ]
    return "\n\n".join(sections) + "\n"


def times_markdown(measured: Sequence[Timed], rounds: int, megabits: float) -> str:
    """Return the table of times and what it means.

    Args:
        rounds: Boxes whose medians the seconds are.
        megabits: A second, of the slow link.
    """
    caption = (
        f"Seconds that a box takes for an update, medians of {rounds} boxes. {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}. From a folder on the same "
        "disk, so reading costs what copying costs; last column: all of it over HTTP, capped at "
        f"{megabits:g} Mbit/s, once. What is what: [README.md](../README.md)."
    )
    rows = []
    for each in measured:
        phases = each.taken.phases
        seconds = (
            *(phases.planning, phases.fetching, phases.reading, phases.making),
            *(phases.checking, phases.gate, phases.total, each.slow.phases.total),
        )
        figures = [each.taken.fetched / 1e6, *seconds]
        rows.append([each.title, each.target, each.grid, *(f"{value:.2f}" for value in figures)])
    parts = ["plan", "fetch", "(read)", "(make)", "check", "gate", "total", f"{megabits:g} Mbit/s"]
    shown = table(["update", "target", "grid", "MB", *parts], rows)
    return f"# Time to apply an update\n\n{caption}\n\n{shown}\n"


def _sizes(measured: Sizes) -> str:
    codings = list(measured[0][1])
    rows = [
        [*_names(pair), *(f"{sizes[c] / 1e6:.2f}" for c in codings)] for pair, sizes in measured
    ]
    return table(["update", "target", "grid", *codings], rows)


def _shares(measured: Sizes) -> str:
    codings = [coding for coding in measured[0][1] if coding != FULL]
    rows = [
        [*_names(pair), *(f"{sizes[coding] / sizes[FULL]:.1%}" for coding in codings)]
        for pair, sizes in measured
    ]
    return table(["update", "target", "grid", *codings], rows)


def _quality(measured: Sizes) -> str:
    rows = []
    for pair, _ in measured:
        figures = pair.new.manifest.evidence.figures
        weights = figures.get("quantized_weights")
        shares = [
            "" if weights is None else f"{figures[name] / weights:.3%}"
            for name in ("changed_weights", "clipped_weights")
        ]
        rows.append(
            [
                *_names(pair),
                *(_figure(figures, name, form) for name, form in _QUALITY.items()),
                *shares,
            ]
        )
    titles = ["checkpoint's perplexity", "build's", "", "same likeliest token"]
    return table(["update", "target", "grid", *titles, "integers changed", "clipped"], rows)


def _figure(figures: Mapping[str, float], name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else ""


def _names(pair: Pair) -> list[str]:
    return [pair.title, pair.new.manifest.target, pair.grid]
