"""A publisher's repository on disk with keys in memory, and how a box sees it."""

from collections.abc import Iterator
from pathlib import Path

from outpost_export.publishing.ceremony import FirstKeys, create
from outpost_export.publishing.repository import Repository
from securesystemslib.signer import CryptoSigner, Key

from tests.support.publisher import NOW, MemoryFetcher


class KeyBag:
    """Signing keys and root in memory; keeps to the Signers protocol. Keys can get lost."""

    def __init__(self) -> None:
        self.keys: dict[str, CryptoSigner] = {}
        self.lost: set[str] = set()
        self.kept = b""

    def make(self) -> Key:
        signer = CryptoSigner.generate_ed25519()
        self.keys[signer.public_key.keyid] = signer
        return signer.public_key

    def signer(self, key: Key) -> CryptoSigner | None:
        return None if key.keyid in self.lost else self.keys.get(key.keyid)

    def root(self) -> bytes:
        return self.kept

    def keep_root(self, root: bytes) -> None:
        self.kept = root


def new_repository(
    folder: Path, bag: KeyBag, *, families: tuple[str, ...] = ("press",), root_keys: int = 3
) -> Repository:
    """Make a repository; two of its root keys must sign, if it has two."""
    repository = Repository(folder)
    keys = FirstKeys(
        root=[bag.make() for _ in range(root_keys)],
        root_threshold=min(2, root_keys),
        targets=bag.make(),
        online=bag.make(),
        families={family: bag.make() for family in families},
    )
    create(repository, keys, bag, NOW)
    return repository


def source_of(folder: Path) -> MemoryFetcher:
    """Return a source of what lies in a folder now, as a web server would hand it out."""
    return MemoryFetcher(dict(_files(folder)))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()
