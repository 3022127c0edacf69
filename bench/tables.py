"""A report as Markdown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.contestants import COMPARED
from bench.material import PREFIX_TOKENS, PROMPT_TOKENS, TAIL_TOKENS
from bench.report import EQUAL_QUALITY, Measure, Report, median_and_range
from bench.workers import CONTEXT, THREADS

_NONE = "-"
_DIGITS = ((1.0, 3), (10.0, 2), (100.0, 1), (math.inf, 0))
"""Below this, a figure has so many digits behind the point."""


def markdown(report: Report) -> str:
    """Return all tables and what they mean."""
    sections = [
        f"## Quality and size\n\n{_quality(report)}",
        f"## Speed\n\n{_speeds(report)}",
        *(f"## {name} compared\n\n{_compared(report, name)}" for name in COMPARED),
        f"## Through gRPC\n\n{_remote(report)}",
    ]
    return "\n\n".join(["# Gemma 3 270M, engine beside engine", _caption(report), *sections]) + "\n"


def _caption(report: Report) -> str:
    plan, (middle, least, most) = report.plan, median_and_range(report.bandwidths)
    return (
        f"Engines take turns, {plan.rounds} times over: medians. {THREADS} threads "
        f"each. Decode: {plan.tokens} tokens per stream after prompts of {PROMPT_TOKENS}, "
        "tokens/s of all streams together; prefill: tokens/s; first token: seconds, after "
        f"{PREFIX_TOKENS} + {TAIL_TOKENS} tokens, warm when the {PREFIX_TOKENS} had been read "
        f"before. Perplexity on {plan.evaluated} tokens. Memory: the most that a fresh process "
        f"with {plan.memory_streams} streams of up to {CONTEXT:,} tokens had resident. Bandwidth: "
        f"{middle / 1e9:.1f} GB/s ({least / 1e9:.1f} to {most / 1e9:.1f}). The rest is in "
        "[README.md](../README.md)."
    )


def _quality(report: Report) -> str:
    measured = report.measured
    rows = [
        [
            "checkpoint (transformers, float32)", "",
            f"{measured.checkpoint_perplexity:.3f}", "", "", "", "",
        ]
    ]  # fmt: skip
    rows += [
        [
            contestant.name,
            f"{contestant.model_bytes / 1e6:.0f}",
            f"{measured.perplexity[contestant.name]:.3f}",
            f"{report.increase(contestant.name):+.2%}",
            "yes" if report.is_equal_quality(contestant.name) else "not equal quality",
            f"{measured.peak_megabytes[contestant.name]:.0f}",
            f"{report.bandwidth_share(contestant):.0%}",
        ]
        for contestant in report.contestants
    ]
    titles = [
        "engine", "model, MB", "perplexity", "to checkpoint",
        f"within +{EQUAL_QUALITY:.0%}", "peak memory, MB", "of the bandwidth, 1 stream",
    ]  # fmt: skip
    return table(titles, rows)


def _speeds(report: Report) -> str:
    measures = report.speeds()
    rows = [
        [name, *(figure(measure.median(name)) for measure in measures)] for name in report.names
    ]
    return table(["engine", *(measure.title for measure in measures)], rows)


def _compared(report: Report, ours: str) -> str:
    explained = (
        "How many times better than a peer (above 1: better; for seconds and bytes, how many times "
        "less): the median of the rounds' ratios, with the least and the most of them for the best "
        "peer of equal quality."
    )
    measures = [replace(each, ours=ours) for each in (*report.speeds(), *report.costs())]
    rows = [comparison(measure, report.peers, report.equal_peers) for measure in measures]
    titles = [
        "",
        ours,
        "best peer of equal quality",
        "to it",
        *(_marked(report, peer) for peer in report.peers),
    ]
    return f"{explained}\n\n{table(titles, rows)}"


def comparison(measure: Measure, peers: Sequence[str], equal_peers: Sequence[str]) -> list[str]:
    """Return a row: ours, the best peer of equal quality, the ratio to it and to every peer."""
    best = measure.best(equal_peers)
    middle, least, most = median_and_range(measure.ratios(best))
    spread = f" ({least:.2f} to {most:.2f})" if len(measure.values[best]) > 1 else ""
    return [
        measure.title,
        figure(measure.median(measure.ours)),
        f"{best}: {figure(measure.median(best))}",
        f"**{middle:.2f}**{spread}",
        *(ratio(median_and_range(measure.ratios(peer))[0]) for peer in peers),
    ]


def _marked(report: Report, peer: str) -> str:
    return peer if report.is_equal_quality(peer) else f"{peer} (not equal quality)"


def _remote(report: Report) -> str:
    explained = (
        "Tokens/s of a client in another process on the same cores, beside the engine asked in its "
        "own process right before."
    )
    rows = [
        [str(remote.streams), figure(remote.engine), figure(remote.client), ratio(remote.ratio)]
        for remote in report.remotes()
    ]
    return f"{explained}\n\n{table(['streams', 'engine', 'client', 'client to engine'], rows)}"


def figure(value: float) -> str:
    """Return three digits, or more of a large number."""
    if math.isnan(value):
        return _NONE
    digits = next(digits for limit, digits in _DIGITS if value < limit)
    return f"{value:.{digits}f}"


def ratio(value: float) -> str:
    """Return two digits behind the point."""
    return _NONE if math.isnan(value) else f"{value:.2f}"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [titles, ["---", *("---:" for _ in titles[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
