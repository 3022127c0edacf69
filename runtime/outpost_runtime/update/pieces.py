"""Pieces: byte strings whose length the reader knows, in the fewest bytes of three forms.

A piece of no bytes is nothing; any other is one byte, its form, and then:

* 0, raw: the bytes;
* 1, zstd: the length of a frame in three bytes, little-endian, and the frame;
* 2, split: two pieces: one bit per byte that says whether it is not zero (the first is the highest
  bit), and the bytes that are not zero. It may come within itself: what is nearly all zeros
  becomes a few bytes, where Huffman's code alone would pay a bit for each.

As the length is known beforehand, nothing that came from outside says how much memory to take.
Used by :mod:`outpost_runtime.update.difference`; see ``docs/update-format.md``.
"""

from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from outpost_runtime.errors import TrustError

Bytes = NDArray[np.uint8]

_RAW, _ZSTD, _SPLIT = 0, 1, 2
_MOST_SPLITS = 4
_LENGTH_BYTES = 3
_WORTH_SEARCHING = 0.8
"""Where Huffman's code alone leaves more, a search for repetitions finds nothing in weights."""

_HUFFMAN = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=21,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
)
"""Looks for next to no repetitions: in weights they are chance, and only disturb the code."""


def huffman(data: bytes) -> bytes:
    """Return a zstd frame that says its content's size, made fast."""
    return zstandard.ZstdCompressor(compression_params=_HUFFMAN).compress(data)


def thorough(data: bytes) -> bytes:
    """Return a zstd frame that says its content's size, the smaller of two."""
    fast = huffman(data)
    if len(fast) > _WORTH_SEARCHING * len(data):
        return fast
    return min(fast, zstandard.ZstdCompressor(level=19).compress(data), key=len)


def expand(frame: bytes | memoryview, size: int) -> bytes:
    """Return the content of a zstd frame, which must say that it has just ``size`` bytes.

    Raises:
        TrustError: It is no such frame.
    """
    try:
        if zstandard.frame_content_size(frame) != size:
            raise TrustError("A compressed piece has another size than it should.")
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise TrustError(f"A compressed piece is damaged: {error}.") from error
    if len(data) != size:
        raise TrustError("A compressed piece has another size than it should.")
    return data


def write_piece(data: Bytes, compress: Callable[[bytes], bytes], splits: int = 0) -> bytes:
    """Return the shortest piece that ``compress`` gives."""
    if not len(data):
        return b""
    frame = compress(data.tobytes())
    forms = [
        bytes([_RAW]) + data.tobytes(),
        bytes([_ZSTD]) + len(frame).to_bytes(_LENGTH_BYTES, "little") + frame,
    ]
    some = data != 0
    if splits < _MOST_SPLITS and 2 * np.count_nonzero(some) < len(data):
        parts = (np.packbits(some), data[some])
        split = b"".join(write_piece(part, compress, splits + 1) for part in parts)
        forms.append(bytes([_SPLIT]) + split)
    return min(forms, key=len)


class PieceReader:
    """Takes pieces off the front of what came.

    Args:
        data: Pieces, and what stands before them.
    """

    def __init__(self, data: memoryview) -> None:
        self._rest = data

    def take(self, count: int) -> memoryview:
        """Take so many bytes.

        Raises:
            TrustError: There are fewer.
        """
        if count > len(self._rest):
            raise TrustError("A difference ends too early.")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def piece(self, size: int, splits: int = 0) -> Bytes:
        """Take a piece of ``size`` bytes.

        Raises:
            TrustError: There is none of that size.
        """
        if not size:
            return np.zeros(0, np.uint8)
        form = self.take(1)[0]
        if form == _RAW:
            return np.frombuffer(self.take(size), np.uint8)
        if form == _ZSTD:
            length = int.from_bytes(self.take(_LENGTH_BYTES), "little")
            return np.frombuffer(expand(self.take(length), size), np.uint8)
        if form == _SPLIT and splits < _MOST_SPLITS:
            return self._split(size, splits + 1)
        raise TrustError("A difference has a piece of an unknown form.")

    def end(self) -> None:
        """Refuse leftovers.

        Raises:
            TrustError: There are some.
        """
        if self._rest:
            raise TrustError("A difference is longer than it should be.")

    def _split(self, size: int, splits: int) -> Bytes:
        some = np.unpackbits(self.piece(-(-size // 8), splits))[:size].view(np.bool_)
        data = np.zeros(size, np.uint8)
        data[some] = self.piece(int(np.count_nonzero(some)), splits)
        return data
