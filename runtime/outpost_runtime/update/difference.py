"""Differences of weights: what changes a block of numbers into another, in few bytes. Pure.

1. What is to be added to the numbers of a block (:mod:`outpost_runtime.update.elements`) is
   compared with what was to be expected, if a guess is worth its bytes
   (:mod:`outpost_runtime.update.low_rank`).
2. It is folded, and sorted by how much is expected (:mod:`outpost_runtime.update.levels`).
3. It is written as tokens (:mod:`outpost_runtime.update.tokens`).

Layout: the order (1 byte); by profile or low rank what that needs; the tokens; the last bytes of
the block that make no whole number, as they are. All little-endian.

* Profile: numbers in a row (4 bytes), place of the first number in its row (4), bias (2, signed);
  pieces of rows and of columns.
* Low rank: numbers in a row (4), place of the first number in its row (4), rank (1); weights (4
  each); the factors of all rows, then of all columns, component by component, folded to 16 bits:
  the piece of their low bytes and the piece of their high bytes.

The publisher tries the orders that a kind has, and takes the one that makes fewest bytes.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import TrustError
from outpost_runtime.update import elements, levels, low_rank, tokens
from outpost_runtime.update.elements import Kind, Numbers
from outpost_runtime.update.levels import Order, Profile, Rows
from outpost_runtime.update.low_rank import Guess, LowRank
from outpost_runtime.update.pieces import Bytes, PieceReader, huffman, thorough, write_piece

_PROFILE = struct.Struct("<IIh")
_LOW_RANK = struct.Struct("<IIB")
_MOST_BIAS = 1024
_WORTH_WHILE = 0.98
"""An order that sorts must save this much, for it takes the box some time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Expected:
    """What both sides know of the differences before they are read.

    Attributes:
        levels: Of each number; None where they are not sorted.
        guess: What they will nearly be, or None.
    """

    levels: Bytes | None = None
    guess: Guess | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A difference in one order, before it is compressed."""

    head: bytes
    numbers: Numbers
    counts: tokens.Counts

    def written(self, kind: Kind, compress: Callable[[bytes], bytes]) -> bytes:
        return self.head + tokens.write(kind, self.numbers, self.counts, compress)


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
    change = elements.differences(kind, elements.read(kind, new[:whole]), before)
    matrix = rows if rows is not None and 0 < rows.width <= len(before) else None
    best, *others = (
        _draft(kind, change, head, expected)
        for head, expected in _orders(kind, change, before, matrix)
    )
    size = len(best.written(kind, huffman)) if others else 0
    for other in others:
        other_size = len(other.written(kind, huffman))
        if other_size < _WORTH_WHILE * size:
            best, size = other, other_size
    return best.written(kind, thorough) + new[whole:]


def decode(kind: Kind, data: memoryview, old: memoryview) -> bytes:
    """Return the block that a difference makes of ``old``.

    Raises:
        TrustError: It is no difference of blocks of this kind and size.
    """
    whole = len(old) // kind.bytes * kind.bytes
    before = elements.read(kind, old[:whole])
    reader = PieceReader(data)
    expected = _read_order(kind, before, reader)
    places, counts = _places(len(before), expected.levels)
    folded = tokens.read(kind, counts, reader)
    tail = reader.take(len(old) - whole)
    reader.end()
    if places is not None:
        sorted_by_level, folded = folded, np.empty_like(folded)
        folded[places] = sorted_by_level
    change = _with_guess(kind, elements.unfold(kind, folded), expected.guess)
    return elements.add(kind, before, change) + tail


def _orders(
    kind: Kind, change: Numbers, before: Numbers, rows: Rows | None
) -> Iterator[tuple[bytes, _Expected]]:
    """Give the orders that may be worth it, the simplest first."""
    if not kind.is_float:
        yield bytes([Order.PLACE]), _Expected()
    if kind is not Kind.INT8:
        yield bytes([Order.VALUE]), _Expected(levels=levels.by_value(kind, before))
    if rows is None:
        return
    if kind is not Kind.INT4:
        profile = levels.fit(kind, before, elements.fold(kind, change), rows)
        found = levels.by_profile(kind, before, profile)
        yield _profile_head(profile), _Expected(levels=found)
    if not kind.is_float:
        for fitted in low_rank.fits(elements.signed(kind, change), rows):
            guess = low_rank.guess(fitted, len(before))
            yield _low_rank_head(fitted), _Expected(levels=guess.levels, guess=guess)


def _draft(kind: Kind, change: Numbers, head: bytes, expected: _Expected) -> _Draft:
    folded = elements.fold(kind, _without_guess(kind, change, expected.guess))
    places, counts = _places(len(change), expected.levels)
    return _Draft(head=head, numbers=folded if places is None else folded[places], counts=counts)


def _places(count: int, found: Bytes | None) -> tuple[NDArray[np.intp] | None, tokens.Counts]:
    if found is None:
        return None, np.array([count], np.intp)
    places = np.argsort(found, kind="stable")
    return places, np.diff(np.searchsorted(found[places], np.arange(levels.COUNT + 1)))


def _without_guess(kind: Kind, change: Numbers, guess: Guess | None) -> Numbers:
    if guess is None:
        return change
    return elements.wrap(kind, _turned(change - guess.steps, guess))


def _with_guess(kind: Kind, beside: Numbers, guess: Guess | None) -> Numbers:
    if guess is None:
        return beside
    return elements.wrap(kind, _turned(beside, guess) + guess.steps)


def _turned(beside: Numbers, guess: Guess) -> Numbers:
    """Negate those that are expected below, so that the more likely side is the positive one."""
    mask = 0 - guess.below
    return (beside ^ mask) - mask


def _profile_head(profile: Profile) -> bytes:
    rows = profile.rows
    fields = _PROFILE.pack(rows.width, rows.first, profile.bias)
    parts = (write_piece(part, thorough) for part in (profile.of_rows, profile.of_columns))
    return bytes([Order.PROFILE]) + fields + b"".join(parts)


def _low_rank_head(found: LowRank) -> bytes:
    rows = found.rows
    fields = _LOW_RANK.pack(rows.width, rows.first, len(found.weights))
    factors = np.concatenate([found.of_rows.ravel(), found.of_columns.ravel()]).astype(np.int16)
    folded = ((factors << 1) ^ (factors >> 15)).view(np.uint8)
    planes = (write_piece(folded[at::2], thorough) for at in (0, 1))
    return bytes([Order.LOW_RANK]) + fields + found.weights.tobytes() + b"".join(planes)


def _read_order(kind: Kind, before: Numbers, reader: PieceReader) -> _Expected:
    order = reader.take(1)[0]
    if order == Order.PLACE and not kind.is_float:
        return _Expected()
    if order == Order.VALUE and kind is not Kind.INT8:
        return _Expected(levels=levels.by_value(kind, before))
    if order == Order.PROFILE and kind is not Kind.INT4:
        profile = _read_profile(len(before), reader)
        return _Expected(levels=levels.by_profile(kind, before, profile))
    if order == Order.LOW_RANK and not kind.is_float:
        guess = low_rank.guess(_read_low_rank(len(before), reader), len(before))
        return _Expected(levels=guess.levels, guess=guess)
    raise TrustError("A difference is sorted in a way that this build does not know.")


def _read_profile(numbers: int, reader: PieceReader) -> Profile:
    width, first, bias = _PROFILE.unpack(reader.take(_PROFILE.size))
    rows = _checked(Rows(width=width, first=first), numbers)
    if abs(bias) > _MOST_BIAS:
        raise TrustError("A difference has an impossible profile.")
    of_rows = reader.piece(rows.count(numbers))
    return Profile(rows=rows, bias=bias, of_rows=of_rows, of_columns=reader.piece(width))


def _read_low_rank(numbers: int, reader: PieceReader) -> LowRank:
    width, first, rank = _LOW_RANK.unpack(reader.take(_LOW_RANK.size))
    rows = _checked(Rows(width=width, first=first), numbers)
    count = rows.count(numbers)
    if not 0 < rank * (count + width) <= numbers:  # or it would cost more than it can say
        raise TrustError("A difference has an impossible rank.")
    weights = np.frombuffer(reader.take(4 * rank), np.int32)
    planes = [reader.piece(rank * (count + width)) for _ in range(2)]
    folded = np.stack(planes, axis=1).view(np.uint16).ravel()
    factors = ((folded >> 1) ^ (0 - (folded & 1))).view(np.int16).astype(np.int32)
    of_rows, of_columns = np.split(factors, [rank * count])
    return LowRank(
        rows=rows,
        weights=weights,
        of_rows=of_rows.reshape(rank, count),
        of_columns=of_columns.reshape(rank, width),
    )


def _checked(rows: Rows, numbers: int) -> Rows:
    if not rows.first < rows.width <= numbers:
        raise TrustError("A difference has a matrix of an impossible shape.")
    return rows
