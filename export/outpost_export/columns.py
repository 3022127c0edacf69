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

ZERO = 128
"""The 8-bit value of zero, of inputs and weights: 1 to 255 is -127 to 127."""

LARGEST = 127

_STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_TRIED_COLUMNS = 4096
_TINY = 1e-5

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Quantized weights: ``(values - ZERO) * scales`` is factor times weight.

    Attributes:
        values: [inputs, outputs].
        scales: [outputs].
    """

    values: NDArray[np.uint8]
    scales: Floats


def balance(inputs: Floats, weights: Sequence[Floats]) -> Floats:
    """Return the factors [channels] with which the layers' outputs are closest to exact.

    Args:
        inputs: [tokens, channels] that the layers have seen.
        weights: [channels, outputs] of each layer that reads them.
    """
    tried = [part[:, :: max(1, part.shape[1] // _TRIED_COLUMNS)] for part in weights]
    largest_weight = np.max([np.abs(part).max(1) for part in weights], axis=0)
    candidates = [_factors(inputs, largest_weight, strength) for strength in _STRENGTHS]
    errors = [_error(inputs, tried, factors) for factors in candidates]
    return candidates[int(np.argmin(errors))]


def quantize(weights: Floats, factors: Floats) -> Columns:
    """Quantize ``factors · weights``, [channels, outputs]."""
    balanced = weights * factors[:, None]
    scales = np.maximum(np.abs(balanced).max(0), np.finfo(np.float32).tiny) / np.float32(LARGEST)
    balanced /= scales
    np.rint(balanced, out=balanced)
    balanced += ZERO
    return Columns(values=balanced.astype(np.uint8), scales=scales)


def dequantize(columns: Columns, factors: Floats) -> Floats:
    """Return the weights as they will be used."""
    steps = columns.values.astype(np.float32) - ZERO
    return steps * columns.scales / factors[:, None]


def rounded_rows(inputs: Floats, factors: Floats) -> Floats:
    """Return the inputs as a run will see them: 8 bits, one scale per row."""
    balanced = inputs / factors
    steps = np.maximum(np.abs(balanced).max(1, keepdims=True), _TINY**4) / LARGEST
    return np.rint(balanced / steps) * steps * factors


def _factors(inputs: Floats, largest_weight: Floats, strength: float) -> Floats:
    largest_input = np.maximum(np.abs(inputs).max(0), _TINY)
    factors = largest_input**strength / np.maximum(largest_weight, _TINY) ** (1 - strength)
    # Their common size does not matter; around one, no product leaves the range of floats.
    factors /= np.exp(np.log(factors).mean())
    return factors.astype(np.float32)


def _error(inputs: Floats, weights: Sequence[Floats], factors: Floats) -> float:
    seen = rounded_rows(inputs, factors)
    return sum(
        float(np.square(seen @ dequantize(quantize(part, factors), factors) - inputs @ part).sum())
        for part in weights
    )
