"""Low rank: a guess at the differences of a matrix from few rows and columns. Pure.

An adapter that was merged changes a matrix by a product of two thin ones. On a frozen grid what is
left of it after rounding is integers, and the product is found again in them. Written down with
as many digits as pay, it says of every number what to expect, and how surely: the change of 2.9
steps became 3 and sometimes 2, that of 3.5 steps 3 or 4. Only which one it was is then written.

The guess is 32-bit integers throughout, in 65,536ths of a step, and wraps around: both sides have
the same on any machine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.update.levels import COUNT, Rows
from outpost_runtime.update.pieces import Bytes

MOST_RANK = 32
_FRACTION_BITS = 16
_HALF = 1 << (_FRACTION_BITS - 1)
_PLACE_BITS = 7
"""Of a guess's place between two halves: the middle is the whole number; 64 levels on each side."""

_ROUNDS = 3
_OVER = 8
_PRECISION = 0.05
"""How far the guess may be off in steps, as a standard deviation; smaller costs more digits."""

_ABOVE_NOISE = 1.05
_LEAST = 0.02
"""What a component must add to the guess, in steps, as a standard deviation."""

Integers = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """A product of two thin matrices.

    Attributes:
        rows: Where the matrix lies in the block.
        weights: What a product of two factors counts, in 65,536ths of a step. [rank]
        of_rows: 16-bit factors of the block's rows. [rank, rows]
        of_columns: The same of its columns. [rank, width]
    """

    rows: Rows
    weights: Integers
    of_rows: Integers
    of_columns: Integers


@dataclass(frozen=True, slots=True)
class Guess:
    """What is expected of every difference.

    Attributes:
        steps: The nearest whole difference, modulo 256.
        below: 1 where the true one is rather less than more, else 0.
        levels: How unsure it is, 0 to 63.
    """

    steps: Bytes
    below: Bytes
    levels: Bytes


def guess(low_rank: LowRank, count: int) -> Guess:
    """Return what is expected of so many differences."""
    weighted = low_rank.of_rows * low_rank.weights[:, None]
    grid = np.einsum("kr,kw->rw", weighted, low_rank.of_columns, dtype=np.int32, casting="unsafe")
    first = low_rank.rows.first
    fixed = grid.ravel()[first : first + count] + np.int32(_HALF)
    place = (fixed >> (_FRACTION_BITS - _PLACE_BITS)).astype(np.uint8) & (2 * COUNT - 1)
    below = (place < COUNT).view(np.uint8)
    levels = (place ^ (0 - below)) & (COUNT - 1)
    return Guess((fixed >> _FRACTION_BITS).astype(np.uint8), below, levels)


def fits(differences: NDArray[np.int8], rows: Rows) -> list[LowRank]:
    """Return low ranks that differences may have: as many as stand out of the noise, and half.

    Args:
        differences: With their signs.
        rows: Where the matrix lies among them.
    """
    flat = np.zeros(rows.count(len(differences)) * rows.width, np.float32)
    flat[rows.first : rows.first + len(differences)] = differences
    grid = flat.reshape(-1, rows.width)
    most = min(MOST_RANK + _OVER, min(grid.shape) // 4)
    if most < 1 or not grid.any():
        return []
    left, values, right = _decomposed(grid, most)
    rest = max(float((grid.astype(np.float64) ** 2).sum() - (values**2).sum()), 0.0)
    edge = np.sqrt(rest / grid.size) * (np.sqrt(grid.shape[0]) + np.sqrt(grid.shape[1]))
    least = max(_ABOVE_NOISE * edge, _LEAST * np.sqrt(grid.size))
    rank = min(int(np.count_nonzero(values > least)), MOST_RANK)
    affordable = len(differences) // sum(grid.shape)
    ranks = sorted({min(r, affordable) for r in (rank, -(-rank // 2))} - {0}, reverse=True)
    return [_rounded(left[:r], values[:r], right[:r], rows) for r in ranks]


def _decomposed(grid: Floats, count: int) -> tuple[Floats, NDArray[np.float64], Floats]:
    """Return the largest singular values with their vectors, as rows; by subspace iteration.

    The products are einsum's and not BLAS's, whose threads wait for each other on a busy machine.
    """
    random = np.random.default_rng(0)
    right = random.standard_normal((count, grid.shape[1])).astype(np.float32)
    for _ in range(_ROUNDS):
        left = _orthonormal(np.einsum("rw,kw->kr", grid, _orthonormal(right)))
        right = np.einsum("kr,rw->kw", left, grid)
    squares, turn = np.linalg.eigh(_gram(right))
    turn = turn[:, ::-1].astype(np.float32)
    values = np.sqrt(np.maximum(squares[::-1], 1e-12))
    right = np.einsum("jk,jw->kw", turn, right) / values[:, None].astype(np.float32)
    return np.einsum("jk,jr->kr", turn, left), values, right


def _orthonormal(vectors: Floats) -> Floats:
    squares, turn = np.linalg.eigh(_gram(vectors))
    scale = 1 / np.sqrt(np.maximum(squares, squares[-1] * 1e-10 + 1e-30))
    found: Floats = np.einsum("jk,jw->kw", (turn * scale).astype(np.float32), vectors)
    return found


def _gram(vectors: Floats) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    found: NDArray[np.float64] = np.einsum("jw,kw->jk", wide, wide)
    return found


def _rounded(left: Floats, values: NDArray[np.float64], right: Floats, rows: Rows) -> LowRank:
    """Round factors so that all of them together move the guess by no more than the precision."""
    rank, (count, width) = len(values), (left.shape[1], right.shape[1])
    step = _PRECISION * np.sqrt(6 / rank)
    of_rows = left * np.sqrt(values)[:, None]
    of_columns = right * np.sqrt(values)[:, None]
    row_step = step / np.sqrt(values / width)
    weights = np.maximum(np.rint(row_step * step / np.sqrt(values / count) * 2**16), 1)
    column_step = weights / 2**16 / row_step
    return LowRank(
        rows=rows,
        weights=weights.astype(np.int32),
        of_rows=_clipped(of_rows / row_step[:, None]),
        of_columns=_clipped(of_columns / column_step[:, None]),
    )


def _clipped(factors: NDArray[np.float64]) -> Integers:
    return np.clip(np.rint(factors), -(1 << 15), (1 << 15) - 1).astype(np.int32)
