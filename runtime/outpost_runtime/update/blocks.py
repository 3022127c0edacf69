"""Stand-in for helper "fetch": blocks on disk, as COMMON.md says."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import StoreError

Buffer = bytes | bytearray | memoryview


class BlockStore:
    """Blocks on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staged: dict[str, bytes] = {}

    def has(self, block_id: str) -> bool:
        """Whether a block is here."""
        return self._path(block_id).is_file()

    def sizes(self) -> dict[str, int]:
        """Return every block that is here, with its stored bytes."""
        return {path.name: path.stat().st_size for path in self.folder.glob("??/*")}

    def read(self, block_id: str) -> bytes:
        """Return a block's stored bytes."""
        try:
            data = self._path(block_id).read_bytes()
        except OSError as error:
            raise StoreError(f"The block {block_id} cannot be read.") from error
        if hashlib.sha256(data).hexdigest() != block_id:
            raise StoreError(f"The block {block_id} is damaged.")
        return data

    def put(self, block_id: str, data: Buffer) -> None:
        """Store a block, durably."""
        self.stage(block_id, data)
        self.commit()

    def stage(self, block_id: str, data: Buffer) -> None:
        """Store a block that appears with the next commit."""
        self._staged[block_id] = bytes(data)

    def commit(self) -> None:
        """Make every staged block visible."""
        for block_id, data in self._staged.items():
            self._path(block_id).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path(block_id), data)
        self._staged.clear()

    def remove(self, block_ids: Iterable[str]) -> None:
        """Remove blocks."""
        for block_id in block_ids:
            self._path(block_id).unlink(missing_ok=True)

    def _path(self, block_id: str) -> Path:
        return self.folder / block_id[:2] / block_id
