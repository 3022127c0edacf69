"""Elements: the numbers that a block of weights is made of, so that near numbers are near. Pure.

A kind says how the numbers lie in the bytes; it is right for any bytes whatever, and only a guess
at what makes differences small:

* INT8: a number in each byte; differences are mod 256.
* INT4: two in each byte, the lower half first; differences are mod 16.
* FLOAT16, BFLOAT16, FLOAT32, little-endian: their bits in the order of their values (negative
  ones turned round, the sign bit flipped), so that neighbours differ by one; mod 2^bits.

A difference is folded: magnitude first and sign last, 0, -1, 1, -2 … become 0, 1, 2, 3 …

Bytes at the end that make no whole number belong to no element; the callers keep them apart.
"""

import sys
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
"""Unsigned integers of the width of the kind (8 bits for INT4)."""

assert sys.byteorder == "little", "weights are read as they lie"  # noqa: S101


class Kind(IntEnum):
    """How numbers lie in a block; the value is the coding byte of its differences."""

    INT8 = 16
    INT4 = 17
    FLOAT16 = 18
    BFLOAT16 = 19
    FLOAT32 = 20

    @property
    def is_float(self) -> bool:
        """Whether its numbers have exponents."""
        return self in _MANTISSA_BITS

    @property
    def bytes(self) -> int:
        """Bytes of a number; two INT4 share one."""
        return self.dtype.itemsize

    @property
    def dtype(self) -> "np.dtype[Any]":
        """What its numbers are held as."""
        return _DTYPES.get(self, np.dtype(np.uint8))


_MANTISSA_BITS = {Kind.FLOAT16: 10, Kind.BFLOAT16: 7, Kind.FLOAT32: 23}
_DTYPES: dict[Kind, np.dtype[Any]] = {
    Kind.FLOAT16: np.dtype(np.uint16),
    Kind.BFLOAT16: np.dtype(np.uint16),
    Kind.FLOAT32: np.dtype(np.uint32),
}
_NIBBLES = np.array([(value & 15, value >> 4) for value in range(256)], np.uint8)
_PAIRS = _NIBBLES.view(np.uint16).ravel()
_FOLDED = np.array([2 * d if d < 8 else 2 * (16 - d) - 1 for d in range(16)], np.uint8)  # noqa: PLR2004 - half of 16
_UNFOLDED = np.argsort(_FOLDED).astype(np.uint8)


def read(kind: Kind, data: memoryview) -> Numbers:
    """Return the numbers of a block, whose length is a multiple of the kind's."""
    raw = np.frombuffer(data, kind.dtype)
    if kind is Kind.INT4:
        return np.take(_PAIRS, raw).view(np.uint8)
    return raw


def exponents(kind: Kind, numbers: Numbers) -> NDArray[np.int16]:
    """Return the exponents of floats, as they stand in their bits; zeros for integers."""
    if not kind.is_float:
        return np.zeros(len(numbers), np.int16)
    found: NDArray[np.int16] = ((numbers & ~_sign(kind)) >> _MANTISSA_BITS[kind]).astype(np.int16)
    return found


def differences(kind: Kind, new: Numbers, old: Numbers) -> Numbers:
    """Return what changes ``old`` numbers into ``new`` ones, folded."""
    if kind is Kind.INT4:
        return np.take(_FOLDED, (new - old) & 15)
    difference = _ordered(kind, new) - _ordered(kind, old)
    return (difference << 1) ^ _negative(kind, difference)


def apply(kind: Kind, old: Numbers, folded: Numbers) -> bytes:
    """Return the block that folded differences make of ``old`` numbers."""
    if kind is Kind.INT4:
        pairs = ((old + np.take(_UNFOLDED, folded)) & 15).view(np.uint16)
        return (pairs | (pairs >> 4)).astype(np.uint8).tobytes()
    unfolded = (folded >> 1) ^ (0 - (folded & 1))
    return _unordered(kind, _ordered(kind, old) + unfolded).tobytes()


def _ordered(kind: Kind, numbers: Numbers) -> Numbers:
    return numbers ^ (_negative(kind, numbers) | _sign(kind)) if kind.is_float else numbers


def _unordered(kind: Kind, ordered: Numbers) -> Numbers:
    return ordered ^ (~_negative(kind, ordered) | _sign(kind)) if kind.is_float else ordered


def _negative(kind: Kind, numbers: Numbers) -> Numbers:
    """All bits where the first is set, else none."""
    return (numbers.view(_signed(kind)) >> (8 * kind.bytes - 1)).view(kind.dtype)


def _sign(kind: Kind) -> Any:
    return kind.dtype.type(1 << (8 * kind.bytes - 1))


def _signed(kind: Kind) -> "np.dtype[Any]":
    return np.dtype(f"i{kind.bytes}")
