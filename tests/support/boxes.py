"""A box as a publisher meets it: its identity first, and what it gets out of a repository then."""

from pathlib import Path

from outpost_runtime.update.device_keys import provision_keys
from outpost_runtime.update.key_ring import KeyRing

from tests.support.repositories import FilesInMemory


class Box:
    """A box with keys of its own in a folder."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.keys = provision_keys(store)
        self.identity = self.keys.identity("terminal")

    def obtain(self, key: str, repository: Path) -> bytes:
        """Get a content key from a repository's folder."""
        files = {
            path.relative_to(repository).as_posix(): path.read_bytes()
            for path in repository.rglob("*")
            if path.is_file()
        }
        ring = KeyRing(self.store, self.keys, self.identity.encryption_key)
        return ring.obtain(key, FilesInMemory(files))
