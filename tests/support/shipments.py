"""Releases of noise, with the files that a repository holds for them.

Blocks are noise instead of something encrypted; a delta makes a block by hashing itself with
its source, which :func:`make_block` does. All that moves, keeps and plans bytes sees no difference.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outpost_runtime.errors import TrustError
from outpost_runtime.update.delta_index import Delta, DeltaIndex
from outpost_runtime.update.release import Block, Release, ReleasedFile, block_path

from tests.support.sources import noise


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """A release and the bytes of its blocks."""

    release: Release
    data: dict[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """The blocks as they lie in a repository."""
        return {block_path(block_id): data for block_id, data in self.data.items()}


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def block_of(data: bytes) -> Block:
    return Block(id=name_of(data), size=len(data), stored=len(data))


def ship(contents: Sequence[bytes], name: str = "press-line", version: str = "1") -> Shipment:
    """Make a release of one file with these blocks."""
    blocks = tuple(map(block_of, contents))
    release = Release(
        name=name,
        version=version,
        target="cpu-int8",
        bundle=name_of(f"{name} {version}".encode()),
        base=None,
        key=name_of(b"key"),
        memory_bytes=1,
        files=(ReleasedFile(name="manifest.json", blocks=blocks),),
        deltas=(),
    )
    return Shipment(release=release, data=dict(zip((b.id for b in blocks), contents, strict=True)))


def ship_noise(sizes: Iterable[int], seed: int = 0, **names: str) -> Shipment:
    return ship([noise(size, seed=1000 * seed + i) for i, size in enumerate(sizes)], **names)


def make_block(delta: bytes, source: bytes, block: Block) -> bytes:
    """What a device does with a delta of this module."""
    if not delta.startswith(b"delta"):
        raise TrustError("It is no delta.")
    return hashlib.shake_256(delta + source).digest(block.stored)


def ship_after(
    before: Shipment, delta_bytes: int, version: str = "2"
) -> tuple[Shipment, DeltaIndex, dict[str, bytes]]:
    """Make the successor whose blocks all come through deltas; returns also the deltas' bytes."""
    contents, rows, deltas = [], [], {}
    for number, block in enumerate(before.release.blocks()):
        delta = b"delta" + noise(delta_bytes - 5, seed=9000 + number)
        made = make_block(delta, before.data[block.id], block)
        contents.append(made)
        deltas[name_of(delta)] = delta
        rows.append(
            Delta(source=block.id, block=name_of(made), id=name_of(delta), stored=len(delta))
        )
    return ship(contents, version=version), DeltaIndex(deltas=tuple(rows)), deltas
