"""Differences of weights: what changes a block of numbers into another, in few bytes. Pure.

How a difference is written, for numbers of a kind (:mod:`outpost_runtime.update.elements`):

1. Differences are folded, and sorted by what is expected of them
   (:mod:`outpost_runtime.update.levels`).
2. Floats: every level has a shift; that many low bits are as good as random and stand apart.
3. What is left of a number, at most 255, is its token. Tokens of 0, 1, 2 or "more" are two bits,
   four to a byte, the first in the lowest bits; those of 3 and more are a byte each; floats of
   255 and more are written as they are.
4. Levels that follow each other are one group as soon as it has 32,768 numbers; the last takes
   what is left. The runs of each group are pieces (:mod:`outpost_runtime.update.pieces`), so that
   zstd makes a Huffman code for each. Sorting, groups, and four to a byte (Huffman's code has no
   less than a bit for a byte) bring it within a few per cent of the numbers' entropy.

Layout: the order (1 byte); by profile: numbers in a row (4 bytes), place of the first number in
its row (4), bias (2, signed), all little-endian, and the pieces of rows and columns; floats: the
piece of 64 shifts; then of every group the pieces of classes and tokens; then the pieces of low
bits and of large numbers; then the last bytes of the block that make no whole number, as they are.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import TrustError
from outpost_runtime.update import elements, levels
from outpost_runtime.update.elements import Kind, Numbers
from outpost_runtime.update.levels import Order, Profile, Rows
from outpost_runtime.update.pieces import Bytes, PieceReader, huffman, thorough, write_piece

_PROFILE = struct.Struct("<IIh")
_MORE = 3
_LARGE = 255
_MOST_INT4 = 15
_MOST_BIAS = 1024
_TOKEN_BITS = 4
"""Floats keep so many bits above the mean of their level in the token; fewer cost bytes."""

_GROUP = 1 << 15
_WORTH_SORTING = 0.98
_CLASSES = np.array([[(value >> shift) & 3 for shift in (0, 2, 4, 6)] for value in range(256)])
_QUADS = _CLASSES.astype(np.uint8).view(np.uint32).ravel()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sorting:
    """Numbers in the order in which they are written; ``places`` is None where they stand."""

    head: bytes
    places: NDArray[np.intp] | None
    counts: NDArray[np.intp]


def encode(kind: Kind, new: memoryview, old: memoryview, rows: Rows | None = None) -> bytes:
    """Return what makes ``new`` of ``old``, which must be of one length.

    Args:
        kind: How numbers lie in them.
        new: The block that it leads to.
        old: The block that it starts from.
        rows: Where a matrix' rows lie in them, if it is one.
    """
    whole = len(new) // kind.bytes * kind.bytes
    before = elements.read(kind, old[:whole])
    folded = elements.differences(kind, elements.read(kind, new[:whole]), before)
    best = _best(kind, folded, list(_sortings(kind, folded, before, rows)))
    return _write(kind, folded, best, thorough) + new[whole:]


def decode(kind: Kind, data: memoryview, old: memoryview) -> bytes:
    """Return the block that a difference makes of ``old``.

    Raises:
        TrustError: It is no difference of blocks of this kind and size.
    """
    whole = len(old) // kind.bytes * kind.bytes
    before = elements.read(kind, old[:whole])
    reader = PieceReader(data)
    sorting = _read_sorting(kind, before, reader)
    folded = _read_numbers(kind, sorting, reader)
    tail = reader.take(len(old) - whole)
    reader.end()
    if sorting.places is not None:
        placed = np.empty_like(folded)
        placed[sorting.places] = folded
        folded = placed
    return elements.apply(kind, before, folded) + tail


def _sortings(
    kind: Kind, folded: Numbers, before: Numbers, rows: Rows | None
) -> Iterator[_Sorting]:
    if not kind.is_float:
        yield _Sorting(
            head=bytes([Order.PLACE]), places=None, counts=np.array([len(before)], np.intp)
        )
    if kind is not Kind.INT8:
        yield _sorted(bytes([Order.VALUE]), levels.by_value(kind, before))
    if kind is not Kind.INT4 and rows is not None and 0 < rows.width <= len(before):
        profile = levels.fit(kind, before, folded, rows)
        yield _sorted(_profile_head(profile), levels.by_profile(kind, before, profile))


def _sorted(head: bytes, found: Bytes) -> _Sorting:
    places = np.argsort(found, kind="stable")
    return _Sorting(
        head=head,
        places=places,
        counts=np.diff(np.searchsorted(found[places], np.arange(levels.COUNT + 1))),
    )


def _best(kind: Kind, folded: Numbers, sortings: list[_Sorting]) -> _Sorting:
    best, *others = sortings
    if not others:
        return best
    size = len(_write(kind, folded, best, huffman))
    for other in others:
        other_size = len(_write(kind, folded, other, huffman))
        if other_size < _WORTH_SORTING * size:
            best, size = other, other_size
    return best


def _profile_head(profile: Profile) -> bytes:
    rows = profile.rows
    fields = _PROFILE.pack(rows.width, rows.first, profile.bias)
    parts = (write_piece(part, thorough) for part in (profile.of_rows, profile.of_columns))
    return bytes([Order.PROFILE]) + fields + b"".join(parts)


def _write(
    kind: Kind, folded: Numbers, sorting: _Sorting, compress: Callable[[bytes], bytes]
) -> bytes:
    numbers = folded if sorting.places is None else folded[sorting.places]
    runs: list[Bytes] = []
    if kind.is_float:
        shifts = _shifts(numbers, sorting.counts)
        tokens = np.minimum(numbers >> np.repeat(shifts, sorting.counts), _LARGE).astype(np.uint8)
        low = [_low_bits(part, int(s)) for part, s in _parts(numbers, sorting.counts, shifts)]
        runs = [np.concatenate(low), numbers[tokens == _LARGE].view(np.uint8)]
    else:
        shifts, tokens = np.zeros(0, np.uint8), numbers
    groups = np.split(tokens, _ends(sorting.counts)[:-1])
    runs = [shifts, *(run for group in groups for run in _token_runs(group)), *runs]
    return sorting.head + b"".join(write_piece(run, compress) for run in runs)


def _token_runs(tokens: Bytes) -> tuple[Bytes, Bytes]:
    classes = np.zeros(-(-len(tokens) // 4) * 4, np.uint8)
    classes[: len(tokens)] = np.minimum(tokens, _MORE)
    quads = classes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return np.bitwise_or.reduce(quads, axis=1), tokens[tokens >= _MORE]


def _ends(counts: NDArray[np.intp]) -> list[int]:
    """Where the groups of numbers end; the last one ends with the numbers."""
    ends, last = [0], int(counts.sum())
    for end in np.cumsum(counts):
        if end - ends[-1] >= _GROUP:
            ends.append(int(end))
    return [*ends[1:-1], last]


def _parts(
    numbers: Numbers, counts: NDArray[np.intp], shifts: Bytes
) -> Iterator[tuple[Numbers, np.uint8]]:
    yield from zip(np.split(numbers, np.cumsum(counts)[:-1]), shifts, strict=True)


def _shifts(numbers: Numbers, counts: NDArray[np.intp]) -> Bytes:
    ends = np.cumsum(counts)
    sums = np.concatenate([[0.0], np.cumsum(numbers, dtype=np.float64)])
    means = (sums[ends] - sums[ends - counts]) / np.maximum(counts, 1)
    shifts = np.floor(np.log2(np.maximum(means, 1))) - _TOKEN_BITS
    found: NDArray[np.uint8] = np.clip(shifts, 0, 8 * numbers.itemsize - 8).astype(np.uint8)
    return found


def _low_bits(numbers: Numbers, shift: int) -> Bytes:
    """Whole bytes of the low bits one after the other, then what is left of them, packed."""
    whole, rest = divmod(shift, 8)
    columns = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize)
    runs = [columns[:, :whole].T.ravel()]
    if rest:
        bits = np.unpackbits(columns[:, whole : whole + 1], axis=1)
        runs.append(np.packbits(bits[:, 8 - rest :]))
    return np.concatenate(runs)


def _low_size(count: int, shift: int) -> int:
    whole, rest = divmod(shift, 8)
    return count * whole + -(-count * rest // 8)


def _read_low_bits(data: Bytes, count: int, shift: int, dtype: "np.dtype[np.uint32]") -> Numbers:
    whole, rest = divmod(shift, 8)
    columns = np.zeros((count, dtype.itemsize), np.uint8)
    columns[:, :whole] = data[: count * whole].reshape(whole, count).T
    if rest:
        bits = np.zeros((count, 8), np.uint8)
        bits[:, 8 - rest :] = np.unpackbits(data[count * whole :], count=count * rest).reshape(
            count, rest
        )
        columns[:, whole] = np.packbits(bits)
    return columns.view(dtype).ravel()


def _read_sorting(kind: Kind, before: Numbers, reader: PieceReader) -> _Sorting:
    order = reader.take(1)[0]
    if order == Order.VALUE and kind is not Kind.INT8:
        return _sorted(b"", levels.by_value(kind, before))
    if order == Order.PROFILE and kind is not Kind.INT4:
        profile = _read_profile(len(before), reader)
        return _sorted(b"", levels.by_profile(kind, before, profile))
    if order == Order.PLACE and not kind.is_float:
        return _Sorting(head=b"", places=None, counts=np.array([len(before)], np.intp))
    raise TrustError("A difference is sorted in a way that this build does not know.")


def _read_profile(numbers: int, reader: PieceReader) -> Profile:
    width, first, bias = _PROFILE.unpack(reader.take(_PROFILE.size))
    if not first < width <= numbers or abs(bias) > _MOST_BIAS:
        raise TrustError("A difference has an impossible profile.")
    rows = Rows(width=width, first=first)
    of_rows = reader.piece(rows.count(numbers))
    return Profile(rows=rows, bias=bias, of_rows=of_rows, of_columns=reader.piece(width))


def _read_numbers(kind: Kind, sorting: _Sorting, reader: PieceReader) -> Numbers:
    shifts = reader.piece(levels.COUNT) if kind.is_float else np.zeros(0, np.uint8)
    sizes = np.diff(_ends(sorting.counts), prepend=0)
    tokens = np.concatenate([_read_tokens(int(size), reader) for size in sizes])
    if kind.is_float:
        return _read_floats(kind, tokens, sorting.counts, shifts, reader)
    if kind is Kind.INT4 and tokens.max(initial=0) > _MOST_INT4:
        raise TrustError("A difference of 4-bit integers has larger ones.")
    return tokens


def _read_tokens(count: int, reader: PieceReader) -> Bytes:
    classes = reader.piece(-(-count // 4))
    tokens = np.take(_QUADS, classes).view(np.uint8)[:count]
    more = np.flatnonzero(tokens == _MORE)
    tokens[more] = reader.piece(len(more))
    return tokens


def _read_floats(
    kind: Kind, tokens: Bytes, counts: NDArray[np.intp], shifts: Bytes, reader: PieceReader
) -> Numbers:
    if shifts.max() > 8 * kind.bytes - 8:
        raise TrustError("A difference has an impossible shift.")
    sizes = [_low_size(int(n), int(s)) for n, s in zip(counts, shifts, strict=True)]
    runs = np.split(reader.piece(sum(sizes)), np.cumsum(sizes)[:-1])
    low = [
        _read_low_bits(run, int(n), int(s), kind.dtype)
        for run, n, s in zip(runs, counts, shifts, strict=True)
    ]
    high = tokens.astype(kind.dtype) << np.repeat(shifts, counts)
    numbers: Numbers = high | np.concatenate(low)
    large = np.flatnonzero(tokens == _LARGE)
    numbers[large] = reader.piece(len(large) * kind.bytes).view(kind.dtype)
    return numbers
