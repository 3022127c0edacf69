"""Weights in 8 bits with one scale per column, balanced against what they are multiplied with.

A product of 8-bit integers is exact and fast if a whole row of inputs has one scale and
a whole column of weights another. A few channels of the inputs are much larger than the
rest, and a scale for all of them leaves the rest few bits; so each channel is divided by
a factor, and its weights are multiplied with it (SmoothQuant, Xiao et al., 2023, eq. 4):
``factor = max|input|^a / max|weight|^(1 - a)``. Which ``a`` is best differs from layer to
layer, and is tried out on inputs that the layer has really seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_export.blocks import Floats, beyond

ZERO = 128
"""The 8-bit value of zero, of inputs and weights: 1 to 255 is -127 to 127."""

LARGEST = 127

_MOST_TRIED_TOKENS, _MOST_TRIED_COLUMNS = 256, 4096
_STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_TINY = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Quantized weights: ``(values - ZERO) * scales`` is factor times weight.

    Attributes:
        values: [inputs, outputs].
        scales: [outputs].
        clipped: Weights that the scales do not reach.
    """

    values: NDArray[np.uint8]
    scales: Floats
    clipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How inputs and weights share what is large.

    Attributes:
        factors: [channels] float32, for the weights; the inputs are divided by them.
        error: Of the layers' outputs: squared, as a share of what they are, mean of all tokens.
    """

    factors: Floats
    error: float


def balance(inputs: Floats, weights: Sequence[Floats]) -> Balance:
    """Return the balance with which the layers' outputs are closest to exact.

    Args:
        inputs: [tokens, channels] that the layers have seen.
        weights: [channels, outputs] of each layer that reads them.
    """
    largest_input = np.maximum(np.abs(inputs).max(0), _TINY)
    largest_weight = np.maximum(np.max([np.abs(part).max(1) for part in weights], axis=0), _TINY)
    seen = inputs[:: max(1, len(inputs) // _MOST_TRIED_TOKENS)]
    tried = [part[:, :: max(1, part.shape[1] // _MOST_TRIED_COLUMNS)] for part in weights]
    exact = [seen @ part for part in tried]
    candidates = []
    for strength in _STRENGTHS:
        factors = largest_input**strength / largest_weight ** (1 - strength)
        # Their common size does not matter; around one, no product leaves the range of floats.
        factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
        error = _error(rounded_rows(seen, factors), tried, factors, exact)
        candidates.append(Balance(factors=factors, error=error))
    return min(candidates, key=lambda candidate: candidate.error)


def quantize(weights: Floats, factors: Floats, scales: Floats | None = None) -> Columns:
    """Quantize ``factors · weights``, [channels, outputs].

    Args:
        scales: Those to use, instead of the smallest that reach every weight.
    """
    balanced = weights * factors[:, None]
    if scales is None:
        largest = np.maximum(np.abs(balanced).max(0), np.finfo(np.float32).tiny)
        scales = largest / np.float32(LARGEST)
    with np.errstate(over="ignore"):  # a column of zeros whose scale is kept reaches nothing
        balanced /= scales
    np.rint(balanced, out=balanced)
    clipped = beyond(balanced, -LARGEST, LARGEST)
    np.clip(balanced, -LARGEST, LARGEST, out=balanced)
    balanced += ZERO
    return Columns(values=balanced.astype(np.uint8), scales=scales, clipped=clipped)


def dequantize(columns: Columns, factors: Floats) -> Floats:
    """Return the weights as they will be used."""
    steps: Floats = columns.values.astype(np.float32) - np.float32(ZERO)
    return steps * columns.scales / factors[:, None]


def rounded_rows(inputs: Floats, factors: Floats) -> Floats:
    """Return the inputs as a run will see them: 8 bits, one scale per row."""
    balanced = inputs / factors
    largest = np.maximum(np.abs(balanced).max(1, keepdims=True), np.finfo(np.float32).tiny)
    steps = largest / np.float32(LARGEST)
    rounded: Floats = np.rint(balanced / steps) * steps * factors
    return rounded


def _error(
    inputs: Floats, weights: Sequence[Floats], factors: Floats, exact: Sequence[Floats]
) -> float:
    wrong, right = np.zeros(len(inputs)), np.zeros(len(inputs))
    for part, wanted in zip(weights, exact, strict=True):
        got = inputs @ dequantize(quantize(part, factors), factors)
        wrong += np.square(got - wanted).sum(1)
        right += np.square(wanted).sum(1)
    return float((wrong / np.maximum(right, _TINY)).mean())
