"""What is inside a block before it is encrypted: one byte, the coding, and then the data. Pure.

See "Blocks" in ``docs/update-format.md``. A message comes from outside: whatever is wrong with it
is a :class:`~outpost_runtime.errors.TrustError`, and its length never says how much memory to take:
that is known from the signed release.
"""

from outpost_runtime.errors import TrustError
from outpost_runtime.update import difference
from outpost_runtime.update.elements import Kind
from outpost_runtime.update.levels import Rows
from outpost_runtime.update.pieces import expand, thorough
from outpost_runtime.update.release import BLOCK_BYTES

PLAIN = 0
ZSTD = 1
_DELTAS = frozenset(map(int, Kind))

Buffer = bytes | bytearray | memoryview


def encode_plain(data: Buffer) -> bytes:
    """Return the message of a block as it is; the only one for blocks that deltas lead to."""
    return b"".join((bytes([PLAIN]), data))


def encode_zstd(data: Buffer) -> bytes:
    """Return the compressed message of a block."""
    return bytes([ZSTD]) + thorough(bytes(data))


def encode_delta(kind: Kind, new: Buffer, old: Buffer, rows: Rows | None = None) -> bytes:
    """Return the message that makes ``new`` of ``old``; both are of one length.

    Args:
        kind: How numbers lie in both; a wrong one costs bytes and nothing else.
        new: The block that it leads to.
        old: The block that it starts from.
        rows: Where a matrix' rows lie in them, if they are known.
    """
    assert len(new) == len(old) <= BLOCK_BYTES  # noqa: S101 - the publisher pairs equal blocks
    return bytes([kind]) + difference.encode(kind, memoryview(new), memoryview(old), rows)


def decode(message: Buffer, size: int, source: Buffer | None = None) -> bytes:
    """Return the plaintext that a message carries.

    Args:
        message: As it was decrypted.
        size: Bytes of the plaintext, as the release says; at most :data:`BLOCK_BYTES`.
        source: Plaintext of the block that a delta starts from.

    Raises:
        TrustError: It carries no plaintext of that size, or not from that source.
    """
    view = memoryview(message)
    if not view:
        raise TrustError("A block is empty.")
    coding, data = view[0], view[1:]
    if coding == PLAIN:
        return _sized(bytes(data), size)
    if coding == ZSTD:
        return expand(data, size)
    if coding not in _DELTAS:
        raise TrustError(
            f"A block has the coding {coding}, which this build does not know.",
            hint="Update the runtime on this box.",
        )
    if source is None or len(source) != size:
        raise TrustError("A delta does not fit the block that it should start from.")
    return difference.decode(Kind(coding), data, memoryview(source))


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise TrustError(f"A block has {len(data):,} bytes instead of {size:,}.")
    return data
