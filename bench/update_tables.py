"""Sizes of updates as Markdown."""

import platform
from collections.abc import Mapping, Sequence

from bench.tables import table
from bench.update_codings import FULL
from bench.update_pairs import Pair

Sizes = Sequence[tuple[Pair, Mapping[str, int]]]


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
                f"{figures['perplexity_source']:.4f}",
                f"{figures['perplexity']:.4f}",
                f"{figures['perplexity_increase']:+.2%}",
                f"{figures['top1_agreement']:.1%}",
                *shares,
            ]
        )
    titles = ["checkpoint's perplexity", "build's", "", "same likeliest token"]
    return table(["update", "target", "grid", *titles, "integers changed", "clipped"], rows)


def _names(pair: Pair) -> list[str]:
    return [pair.title, pair.new.manifest.target, pair.grid]
