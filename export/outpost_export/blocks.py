"""Weights in 4 or 8 bits with one scale for each block of a row's weights.

Where scales are given (see ``grid.py``), weights beyond what they reach are clipped and counted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 4096
"""Rows at a time: the scratch memory of a large vocabulary stays small."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Quantized weights.

    Attributes:
        values: [rows, columns · bits / 8] uint8; of 4-bit values the first is the lower half.
        scales: [rows, blocks] float32.
        clipped: Weights that the scales do not reach.
    """

    values: NDArray[np.uint8]
    scales: Floats
    clipped: int


def quantize_rows(weights: Floats, block_size: int, scales: Floats | None = None) -> Blocks:
    """Quantize [rows, columns] symmetrically to 8 bits around 128: 1 to 255 is -127 to 127.

    Args:
        scales: Those to use, instead of the smallest that reach every weight.
    """
    rows, columns = weights.shape
    blocks = weights.reshape(rows, columns // block_size, block_size)
    scales = (np.abs(blocks).max(-1) / 127).astype(np.float32) if scales is None else scales
    steps = np.where(scales == 0, np.float32(np.inf), scales)[..., None]
    rounded = np.rint(blocks / steps)
    clipped = beyond(rounded, -127, 127) + _lost(blocks, scales)
    values = (np.clip(rounded, -127, 127) + 128).astype(np.uint8)
    return Blocks(values=values.reshape(rows, columns), scales=scales, clipped=clipped)


def quantize_bits(
    weights: Floats, bits: int, block_size: int, scales: Floats | None = None
) -> Blocks:
    """Quantize [rows, columns] as ONNX Runtime's ``MatMulNBits`` quantizer does, symmetrically.

    The largest weight of a block, which may be negative, is the integer -2^(bits - 1); rows are
    filled up with zeros to whole blocks.

    Args:
        bits: 4 or 8.
        scales: Those to use, instead of the ones that make each block's largest weight exact.
    """
    parts = [
        _quantize_bits(
            weights[start : start + _ROWS],
            bits,
            block_size,
            None if scales is None else scales[start : start + _ROWS],
        )
        for start in range(0, len(weights), _ROWS)
    ]
    return Blocks(
        values=np.concatenate([part.values for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        clipped=sum(part.clipped for part in parts),
    )


def beyond(values: Floats, least: float, most: float) -> int:
    """Return how many values are not from least to most."""
    return int(np.count_nonzero(values < least) + np.count_nonzero(values > most))


def _quantize_bits(weights: Floats, bits: int, block_size: int, scales: Floats | None) -> Blocks:
    half = 1 << (bits - 1)
    blocks = _blocks(weights, block_size)
    scales = _signed_scales(blocks, half) if scales is None else scales
    # The reciprocal, and halves away from zero, because that is how ONNX Runtime rounds.
    inverse = np.divide(1, scales, where=scales != 0, out=np.zeros_like(scales))
    steps = blocks * inverse[..., None]
    rounded = np.floor(np.abs(steps) + np.float32(0.5)) * np.sign(steps)
    # On its own scale, too, a weight as large as the largest and of the other sign is one step off.
    clipped = beyond(rounded, -half, half) + _lost(blocks, scales)
    values = (np.clip(rounded, -half, half - 1) + half).astype(np.uint8)
    rows = values.reshape(len(weights), -1)
    packed = rows if bits == 8 else rows[:, ::2] | rows[:, 1::2] << 4  # noqa: PLR2004 - a byte
    return Blocks(values=packed, scales=scales, clipped=clipped)


def _blocks(weights: Floats, block_size: int) -> Floats:
    rows, columns = weights.shape
    padded: Floats = np.pad(weights, ((0, 0), (0, -columns % block_size)))
    return padded.reshape(rows, -1, block_size)


def _signed_scales(blocks: Floats, half: int) -> Floats:
    least, most = blocks.min(-1), blocks.max(-1)
    scales: Floats = np.where(np.abs(most) > np.abs(least), most, least) / np.float32(-half)
    return scales


def _lost(blocks: Floats, scales: Floats) -> int:
    """Return how many weights there are in blocks whose scale is zero."""
    return int(np.count_nonzero(blocks[scales == 0]))
