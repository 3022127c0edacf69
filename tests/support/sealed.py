"""Bundles sealed as a publisher would, cut into pieces of one size, and a store in memory."""

import hashlib
import os
from pathlib import Path

from outpost_runtime.bundle import Bundle, FolderBundle, read_bundle
from outpost_runtime.errors import StoreError
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.manifest import MANIFEST_NAME
from outpost_runtime.update.content_keys import content_key_id
from outpost_runtime.update.encryption import seal
from outpost_runtime.update.release import Base, Block, Release, ReleasedFile
from outpost_runtime.update.sealed import open_sealed

KEY = hashlib.sha256(b"a content key of tests").digest()


class Blocks(dict[str, bytes]):
    """Stored blocks by their ids."""

    def read(self, block_id: str) -> bytes:
        """What a store does: missing and damaged blocks are errors."""
        if block_id not in self:
            raise StoreError(f"The block {block_id[:12]} is not in the store.")
        if hashlib.sha256(self[block_id]).hexdigest() != block_id:
            raise StoreError(f"The block {block_id[:12]} is damaged.")
        return self[block_id]


class FolderBlocks:
    """The same on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, blocks: Blocks) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for block_id, data in blocks.items():
            (self.folder / block_id).write_bytes(data)
        os.sync()

    def read(self, block_id: str) -> bytes:
        return (self.folder / block_id).read_bytes()


def released(
    bundle: FolderBundle, blocks: Blocks, *, key: bytes = KEY, block_bytes: int = 1 << 14
) -> Release:
    """Seal a bundle's files into blocks; returns its release."""
    manifest = bundle.manifest
    names = (MANIFEST_NAME, *manifest.files)
    files = [(name, bundle.path(name).read_bytes()) for name in names]
    interface = manifest.interface
    base = None
    if isinstance(interface, AdapterInterface):
        base = Base(name=interface.base_name, bundle=interface.base)
    return Release(
        name=manifest.name,
        version=manifest.version,
        target=manifest.target,
        bundle=bundle.digest,
        base=base,
        key=content_key_id(key),
        memory_bytes=manifest.memory_bytes,
        files=tuple(
            ReleasedFile(name=name, blocks=tuple(_cut(data, blocks, key, block_bytes)))
            for name, data in files
        ),
        deltas=(),
    )


def sealed(folder: Path, *, block_bytes: int = 1 << 14) -> Bundle:
    """Return a folder's bundle as one that is opened from encrypted blocks."""
    blocks = Blocks()
    release = released(read_bundle(folder), blocks, block_bytes=block_bytes)
    return open_sealed(release, blocks.read, KEY)


def _cut(data: bytes, blocks: Blocks, key: bytes, block_bytes: int) -> list[Block]:
    cut = []
    for start in range(0, len(data), block_bytes):
        plain = data[start : start + block_bytes]
        stored = seal(b"\0" + plain, key)
        block_id = hashlib.sha256(stored).hexdigest()
        blocks[block_id] = stored
        cut.append(Block(id=block_id, size=len(plain), stored=len(stored)))
    return cut
