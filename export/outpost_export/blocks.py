"""Weights in 8 bits with one scale for each block of a row's weights."""

import numpy as np
from numpy.typing import NDArray


def quantize_rows(
    weights: NDArray[np.float32], block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize [rows, columns] symmetrically to 8 bits around 128.

    Returns:
        [rows, columns] values and [rows, columns / block_size] scales.
    """
    rows, columns = weights.shape
    blocks = weights.reshape(rows, columns // block_size, block_size)
    scales = np.abs(blocks).max(-1) / 127
    steps = np.where(scales == 0, 1, scales)[..., None]
    values = np.clip(np.rint(blocks / steps) + 128, 1, 255).astype(np.uint8)
    return values.reshape(rows, columns), scales.astype(np.float32)
