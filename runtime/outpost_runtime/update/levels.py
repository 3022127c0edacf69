"""Levels: of which numbers of a block the same change is expected. Pure.

Both sides work the levels out from the old numbers, and sort by them: then numbers that change
alike stand together, and a code is made for each sort. The smaller the level, the smaller the
expected difference.

* By value: floats with a large exponent change by fewer steps than those with a small one; what
  an INT4 number was says where it can go.
* By profile: rows and columns of a matrix change by different amounts; a fine-tune is a sum of few
  outer products. The profile says by how much, in half octaves; the exponent of floats is added.
* By low rank: how far the guess is from a whole number; see :mod:`outpost_runtime.update.low_rank`.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import TrustError
from outpost_runtime.update import elements
from outpost_runtime.update.elements import Kind, Numbers
from outpost_runtime.update.pieces import Bytes

COUNT = 64
"""How many levels there are."""


class Order(IntEnum):
    """What numbers are sorted by."""

    PLACE = 0
    VALUE = 1
    PROFILE = 2
    LOW_RANK = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Where the rows of a matrix lie in a block.

    Attributes:
        width: Numbers in a row.
        first: Place of the block's first number in its row.
    """

    width: int
    first: int

    def count(self, numbers: int) -> int:
        """Return how many rows so many numbers touch."""
        return -(-(self.first + numbers) // self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """By how much rows and columns change, in half octaves.

    Attributes:
        bias: What is added to the sum of row, column and exponent to make a level.
    """

    rows: Rows
    bias: int
    of_rows: Bytes
    of_columns: Bytes


def by_value(kind: Kind, old: Numbers) -> Bytes:
    """Return the levels of old numbers.

    Raises:
        TrustError: Numbers of this kind have none.
    """
    if kind is Kind.INT4:
        return old
    if not kind.is_float:
        raise TrustError("A difference of 8-bit integers is sorted by their value.")
    found = elements.exponents(kind, old)
    levels: Bytes = np.minimum(found.max(initial=0) - found, COUNT - 1).astype(np.uint8)
    return levels


def by_profile(kind: Kind, old: Numbers, profile: Profile) -> Bytes:
    """Return the levels of old numbers whose rows and columns have a profile."""
    expected = _expected(kind, old, profile) + np.int16(profile.bias)
    levels: Bytes = np.clip(expected, 0, COUNT - 1).astype(np.uint8)
    return levels


def fit(kind: Kind, old: Numbers, folded: Numbers, rows: Rows) -> Profile:
    """Return the profile that differences have."""
    magnitudes = ((folded + (folded & 1)) >> 1).astype(np.float32)
    if kind.is_float:
        found = elements.exponents(kind, old)
        magnitudes = np.ldexp(magnitudes, found - found.max(initial=0))
    grid = np.zeros((2, rows.count(len(old)) * rows.width), np.float32)
    grid[:, rows.first : rows.first + len(old)] = magnitudes, np.ones(len(old))
    sums, counts = grid.reshape(2, -1, rows.width)
    profile = Profile(
        rows=rows,
        bias=0,
        of_rows=_half_octaves(sums.sum(1) / np.maximum(counts.sum(1), 1)),
        of_columns=_half_octaves(sums.sum(0) / np.maximum(counts.sum(0), 1)),
    )
    middle = int(np.median(_expected(kind, old, profile)))
    return replace(profile, bias=COUNT // 2 - middle)


def _expected(kind: Kind, old: Numbers, profile: Profile) -> NDArray[np.int16]:
    rows, columns = (part.astype(np.int16) for part in (profile.of_rows, profile.of_columns))
    first = profile.rows.first
    grid = (rows[:, None] + columns).ravel()[first : first + len(old)]
    return grid - 2 * elements.exponents(kind, old) if kind.is_float else grid


def _half_octaves(means: NDArray[np.float32]) -> Bytes:
    smallest = max(float(means.max(initial=0)), 1e-300) * 2.0 ** (-COUNT / 2)
    octaves = np.rint(2 * np.log2(np.maximum(means.astype(np.float64), smallest) / smallest))
    levels: Bytes = np.clip(octaves, 0, COUNT).astype(np.uint8)
    return levels
