"""From a piece of a file to its encrypted block, and to deltas from earlier releases' blocks.

A block with tensors is plain, for a box makes the same one of a delta and encrypts it again.
One without is compressed where that saves a tenth. A delta is kept where it and its line in the
index are smaller than the block.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outpost_runtime.errors import StoreError, TrustError
from outpost_runtime.update.coding import decode, encode_delta, encode_plain, encode_zstd
from outpost_runtime.update.delta_index import Delta
from outpost_runtime.update.encryption import seal, sealed_size, unseal
from outpost_runtime.update.release import Block

from outpost_export.publishing.cutting import Cut

_WORTH_COMPRESSING = 0.9
_INDEX_BYTES = 210
"""A delta's line in its index."""

ReadBlock = Callable[[str], bytes]
"""Gives a block's stored bytes by its identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An earlier release, as far as one file is concerned.

    Attributes:
        known: Every block of that release; a box that has it has them all.
        partner: The block that lies where the new one comes, or None.
    """

    known: frozenset[str]
    partner: Block | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A block or delta with its bytes."""

    id: str
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What one piece of a file became.

    Attributes:
        block: Its row in the release.
        stored: Its bytes; None where an earlier release has just this block, and it is right.
        heals: An earlier release has this block, but it is missing or damaged.
        deltas: For each source the delta and its bytes, or None.
    """

    block: Block
    stored: Stored | None
    heals: bool
    deltas: tuple[tuple[Delta, Stored] | None, ...]


class Encoder:
    """Encodes pieces of one family. May be used by several threads.

    Args:
        key: The family's content key.
        read: Gives the blocks of earlier releases.
    """

    def __init__(self, key: bytes, read: ReadBlock) -> None:
        self._key = key
        self._read = read

    def encode(self, data: bytes, cut: Cut, sources: Sequence[Source]) -> Encoded:
        """Encode a piece.

        Args:
            data: Its bytes.
            cut: How numbers lie in it.
            sources: Earlier releases, newest first.
        """
        before = [self._plaintext(source) for source in sources]
        for source, plaintext in zip(sources, before, strict=True):
            if plaintext == data and source.partner is not None:
                # The same block, though this zstd might compress it to other bytes.
                block, stored = source.partner, None
                break
        else:
            stored = _stored(seal(_message(data, cut), self._key))
            block = Block(id=stored.id, size=len(data), stored=len(stored.data))
        deltas = (
            self._delta(data, cut, block, source, plaintext)
            for source, plaintext in zip(sources, before, strict=True)
        )
        named = any(
            source.partner is not None and source.partner.id == block.id for source in sources
        )
        return Encoded(
            block=block,
            stored=stored,
            heals=named and stored is not None,
            deltas=tuple(deltas),
        )

    def _delta(
        self, data: bytes, cut: Cut, block: Block, source: Source, before: bytes | None
    ) -> tuple[Delta, Stored] | None:
        partner = source.partner
        if block.id in source.known or before is None or partner is None or cut.kind is None:
            return None
        if partner.stored != sealed_size(partner.size + 1):
            return None  # it is compressed, and a box could not tell its size
        message = encode_delta(cut.kind, data, before, cut.rows)
        stored = _stored(seal(message, self._key))
        if len(stored.data) + _INDEX_BYTES >= block.stored:
            return None
        delta = Delta(source=partner.id, block=block.id, id=stored.id, stored=len(stored.data))
        return delta, stored

    def _plaintext(self, source: Source) -> bytes | None:
        """Return what the partner's block carries, or None where it cannot be had."""
        if source.partner is None:
            return None
        try:
            message = unseal(self._read(source.partner.id), self._key)
            return decode(message, source.partner.size)
        except (StoreError, TrustError):
            return None  # then there is no delta, and no doubt that the block is written again


def _message(data: bytes, cut: Cut) -> bytes:
    if cut.kind is None:
        compressed = encode_zstd(data)
        if len(compressed) <= _WORTH_COMPRESSING * len(data):
            return compressed
    return encode_plain(data)


def _stored(data: bytes) -> Stored:
    return Stored(id=hashlib.sha256(data).hexdigest(), data=data)


def partners(old: Sequence[Block], new: Sequence[Cut]) -> list[Block | None]:
    """Return for each new piece of a file the old block that lies at its place.

    Pieces of equal sizes are paired from the front and then from the back, so that something that
    grew or shrank in between, such as a list of names, parts nothing else.
    """
    front = _equal(old, new)
    back = _equal(old[front:][::-1], new[front:][::-1])
    middle = len(new) - front - back
    return [*old[:front], *[None] * middle, *old[len(old) - back :]]


def _equal(old: Sequence[Block], new: Sequence[Cut]) -> int:
    count = 0
    for block, cut in zip(old, new, strict=False):
        if block.size != cut.size:
            break
        count += 1
    return count
