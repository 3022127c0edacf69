"""Tokens: how folded differences, sorted by level, become pieces. Pure.

1. Floats: every level has a shift; that many low bits are as good as random and stand apart.
2. What is left of a number, at most 255, is its token; integers are their tokens. Tokens of 0, 1, 2
   or "more" are two bits, four to a byte, the first in the lowest bits; those of 3 and more are a
   byte each; floats whose token is 255 are written as they are.
3. Levels that follow each other are one group as soon as it has 32,768 numbers; the last takes
   what is left. The runs of each group are pieces (:mod:`outpost_runtime.update.pieces`), so that
   zstd makes a Huffman code for each. Groups, and four to a byte (Huffman's code has no less than
   a bit for a byte), bring it within a few per cent of the entropy.

Layout: of floats the piece of 64 shifts; of every group the pieces of classes and of tokens; of
floats the pieces of low bits and of large numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import TrustError
from outpost_runtime.update.elements import Kind, Numbers
from outpost_runtime.update.levels import COUNT
from outpost_runtime.update.pieces import Bytes, PieceReader, write_piece

Counts = NDArray[np.intp]
"""How many numbers each level has."""

_MORE = 3
_LARGE = 255
_GROUP = 1 << 15
_TOKEN_BITS = 4
"""Floats keep so many bits above the mean of their level in the token; fewer cost bytes."""

_CLASSES = np.array([[(value >> shift) & 3 for shift in (0, 2, 4, 6)] for value in range(256)])
_QUADS = _CLASSES.astype(np.uint8).view(np.uint32).ravel()


def write(
    kind: Kind, numbers: Numbers, counts: Counts, compress: Callable[[bytes], bytes]
) -> bytes:
    """Return the pieces of folded differences, which are sorted by level."""
    runs = _float_runs(kind, numbers, counts) if kind.is_float else _integer_runs(numbers, counts)
    return b"".join(write_piece(run, compress) for run in runs)


def read(kind: Kind, counts: Counts, reader: PieceReader) -> Numbers:
    """Take folded differences off the front of what came.

    Raises:
        TrustError: They are not there.
    """
    if not kind.is_float:
        return _read_tokens(counts, reader)
    shifts = reader.piece(COUNT)
    if shifts.max() > 8 * kind.bytes - 8:
        raise TrustError("A difference has an impossible shift.")
    tokens = _read_tokens(counts, reader)
    low = _read_low(kind, counts, shifts, reader)
    numbers = (tokens.astype(kind.dtype) << np.repeat(shifts, counts)) | low
    large = np.flatnonzero(tokens == _LARGE)
    numbers[large] = reader.piece(len(large) * kind.bytes).view(kind.dtype)
    return numbers


def _integer_runs(tokens: Bytes, counts: Counts) -> Iterator[Bytes]:
    for group in np.split(tokens, _ends(counts)[:-1]):
        classes = np.zeros(-(-len(group) // 4) * 4, np.uint8)
        classes[: len(group)] = np.minimum(group, _MORE)
        quads = classes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
        yield np.bitwise_or.reduce(quads, axis=1)
        yield group[group >= _MORE]


def _float_runs(kind: Kind, numbers: Numbers, counts: Counts) -> Iterator[Bytes]:
    shifts = _shifts(kind, numbers, counts)
    tokens = np.minimum(numbers >> np.repeat(shifts, counts), _LARGE).astype(np.uint8)
    yield shifts
    yield from _integer_runs(tokens, counts)
    levels = np.split(numbers, np.cumsum(counts)[:-1])
    yield np.concatenate(
        [
            run
            for level, shift in zip(levels, shifts, strict=True)
            for run in _low(level, int(shift))
        ]
    )
    yield numbers[tokens == _LARGE].view(np.uint8)


def _read_tokens(counts: Counts, reader: PieceReader) -> Bytes:
    groups = []
    for count in np.diff(_ends(counts), prepend=0).tolist():
        tokens = np.take(_QUADS, reader.piece(-(-count // 4))).view(np.uint8)[:count]
        more = np.flatnonzero(tokens == _MORE)
        tokens[more] = reader.piece(len(more))
        groups.append(tokens)
    return np.concatenate(groups)


def _ends(counts: Counts) -> list[int]:
    """Where the groups of numbers end; the last one ends with the numbers."""
    ends = [0]
    for end in np.cumsum(counts).tolist():
        if end - ends[-1] >= _GROUP:
            ends.append(end)
    return [*ends[1:-1], int(counts.sum())]


def _shifts(kind: Kind, numbers: Numbers, counts: Counts) -> Bytes:
    ends = np.cumsum(counts)
    sums = np.concatenate([[0.0], np.cumsum(numbers, dtype=np.float64)])
    means = (sums[ends] - sums[ends - counts]) / np.maximum(counts, 1)
    shifts = np.floor(np.log2(np.maximum(means, 1))) - _TOKEN_BITS
    found: Bytes = np.clip(shifts, 0, 8 * kind.bytes - 8).astype(np.uint8)
    return found


def _low(numbers: Numbers, shift: int) -> Iterable[Bytes]:
    """Whole bytes of the low bits one after the other, then what is left of them, packed."""
    whole, rest = divmod(shift, 8)
    columns = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize)
    yield columns[:, :whole].T.ravel()
    if rest:
        bits = np.unpackbits(columns[:, whole : whole + 1], axis=1)
        yield np.packbits(bits[:, 8 - rest :])


def _read_low(kind: Kind, counts: Counts, shifts: Bytes, reader: PieceReader) -> Numbers:
    pairs = list(zip(counts.tolist(), shifts.tolist(), strict=True))
    sizes = [count * (shift // 8) + -(-count * (shift % 8) // 8) for count, shift in pairs]
    runs = np.split(reader.piece(sum(sizes)), np.cumsum(sizes)[:-1])
    parts = (
        _joined(run, count, shift, kind.dtype)
        for run, (count, shift) in zip(runs, pairs, strict=True)
    )
    return np.concatenate(list(parts))


def _joined(run: Bytes, count: int, shift: int, dtype: "np.dtype[Any]") -> Numbers:
    whole, rest = divmod(shift, 8)
    columns = np.zeros((count, dtype.itemsize), np.uint8)
    columns[:, :whole] = run[: count * whole].reshape(whole, count).T
    if rest:
        bits = np.unpackbits(run[count * whole :], count=count * rest).reshape(count, rest)
        padded = np.zeros((count, 8), np.uint8)
        padded[:, 8 - rest :] = bits
        columns[:, whole] = np.packbits(padded)
    return columns.view(dtype).ravel()
