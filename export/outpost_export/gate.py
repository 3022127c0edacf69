"""The gate: figures against thresholds. Pure.

A figure that is not a number misses every threshold.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Rule(enum.Enum):
    """On which side of its threshold a figure must be."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


RULES: dict[str, Rule] = {
    # Decoders. Increase: how much worse than the source. Difference: better counts as off, too.
    "perplexity_increase": Rule.AT_MOST,
    "perplexity_difference": Rule.AT_MOST,
    "top1_agreement": Rule.AT_LEAST,
    "greedy_tokens": Rule.AT_LEAST,
    # Encoders.
    "cosine": Rule.AT_LEAST,
    "label_agreement": Rule.AT_LEAST,
    "max_difference": Rule.AT_MOST,
    # ONNX files; see onnx_evidence.py.
    "relative_difference": Rule.AT_MOST,
    "repeat_difference": Rule.AT_MOST,
    "batch_difference": Rule.AT_MOST,
}
"""What can be demanded, by the name of the figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Miss:
    """A figure on the wrong side of its threshold."""

    figure: str
    value: float
    threshold: float

    def __str__(self) -> str:
        wanted = RULES[self.figure].value
        return f"{self.figure} is {self.value:.6g}, demanded is {wanted} {self.threshold:.6g}"


def misses(figures: Mapping[str, float], thresholds: Mapping[str, float]) -> list[Miss]:
    """Return every threshold that the figures miss; a figure that was not measured misses it."""
    missed = []
    for name, threshold in thresholds.items():
        value = figures.get(name, float("nan"))
        holds = value <= threshold if RULES[name] is Rule.AT_MOST else value >= threshold
        if not holds:
            missed.append(Miss(figure=name, value=value, threshold=threshold))
    return missed
