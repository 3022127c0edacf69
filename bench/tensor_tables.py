"""A report on servers as Markdown."""

from bench.report import median_and_range
from bench.tables import comparison, figure, table
from bench.tensor_material import SENTENCE_TOKENS, TINY_TOKENS
from bench.tensor_report import EQUAL_ANSWERS, Report
from bench.tensor_servers import OURS
from bench.workers import THREADS


def markdown(report: Report) -> str:
    """Return all tables and what they mean."""
    speeds = [f"## {model}\n\n{_speeds(report, model)}" for model in report.models]
    compared = [f"### {model}\n\n{_compared(report, model)}" for model in report.models]
    sections = [
        "# Tensors, server beside server",
        _caption(report),
        f"## Answers and memory\n\n{_answers(report)}",
        *speeds,
        f"## {OURS} compared\n\n{_EXPLAINED}",
        *compared,
    ]
    return "\n\n".join(sections) + "\n"


_EXPLAINED = (
    "How many times better than a peer (above 1: better; for waits and bytes, how many times "
    "less): the median of the rounds' ratios, with the least and the most of them for the best "
    "peer."
)


def _caption(report: Report) -> str:
    plan, (least, most) = report.plan, SENTENCE_TOKENS
    middle, cheapest, dearest = median_and_range(report.generator_seconds())
    return (
        f"Servers take turns, {plan.rounds} times over: medians, {plan.seconds:g} s per "
        f"figure. {THREADS} threads per run of the encoder, one of the classifier. One sentence "
        f"per request: of {least} to {most} tokens for the sentence encoder, of {TINY_TOKENS} for "
        "the classifier. The load generator "
        f"took {middle * 1e6:.0f} µs of a processor per request ({cheapest * 1e6:.0f} to "
        f"{dearest * 1e6:.0f}), on the same cores. The rest is in [README.md](../README.md)."
    )


def _answers(report: Report) -> str:
    measured = report.measured
    titles = [
        "server",
        *(f"largest difference, {model}" for model in report.models),
        f"at most {EQUAL_ANSWERS:g}",
        "peak memory, MB",
    ]
    rows = [
        [
            name,
            *(_difference(measured.differences[name].get(model)) for model in report.models),
            "yes" if report.is_equal(name) else "no",
            figure(measured.peak_megabytes[name]),
        ]
        for name in report.names
    ]
    return table(titles, rows)


def _difference(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _speeds(report: Report, model: str) -> str:
    measures = [measure for cell in report.cells(model) for measure in report.speeds(cell)]
    rows = [
        [name, *(figure(measure.median(name)) for measure in measures)] for name in report.names
    ]
    return table(["server", *(measure.title for measure in measures)], rows)


def _compared(report: Report, model: str) -> str:
    measures = [measure for cell in report.cells(model) for measure in report.speeds(cell)]
    rows = [
        comparison(measure, report.peers, report.equal_peers)
        for measure in (*measures, report.memory())
    ]
    return table(["", OURS, "best peer", "to it", *report.peers], rows)
