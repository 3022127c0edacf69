"""What an update takes on Outpost's own path: published, fetched, checked; bytes and seconds."""

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outpost_export.progress import ConsoleReporter
from outpost_export.publishing import ceremony
from outpost_export.publishing.key_files import make_key
from outpost_export.publishing.publication import Order, Warehouse
from outpost_export.publishing.publish import publish
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signed_shelf import SignedShelf
from outpost_export.publishing.signers import KeyFolders
from outpost_runtime.bundle import FolderBundle
from outpost_runtime.update import activation
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.box import Box, Provisioning, provision
from outpost_runtime.update.content_keys import (
    encode_wrapped_key,
    new_content_key,
    wrap_content_key,
    wrapped_key_path,
)
from outpost_runtime.update.planning import Plan
from outpost_runtime.update.policy import UpdatePolicy
from outpost_runtime.update.sources import open_sources
from outpost_runtime.update.sync import Wishes, sync
from rich.console import Console

FAMILY = "bench"
_PASSPHRASE = "only for the bench"  # noqa: S105 - protects nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one update took.

    Attributes:
        fetched: Bytes of blocks and deltas.
        documents: Bytes of signed metadata, the release and the delta index.
        seconds: Fetched from a folder, made, checked and staged; the gate comes afterwards.
        first_seconds: The same of the bundle before, of which nothing was there.
    """

    fetched: int
    documents: int
    seconds: float
    first_seconds: float

    @property
    def total(self) -> int:
        """All bytes that came."""
        return self.fetched + self.documents


def measure(old: FolderBundle, new: FolderBundle, base: FolderBundle | None = None) -> Update:
    """Publish two bundles, and take a box from one to the other.

    Args:
        base: What both need; it is there before, and counts for nothing.
    """
    with tempfile.TemporaryDirectory() as scratch, _publisher(Path(scratch)) as warehouse:
        if base is not None:
            _publish(base, warehouse)
        _publish(old, warehouse)
        box = _box(Path(scratch), warehouse)
        first = _sync(box)[1]
        box.store.change(lambda slots: activation.activate(slots, 0))
        before = _documents(warehouse.folder).keys()
        _publish(new, warehouse)
        plan, seconds = _sync(box)
        found = _documents(warehouse.folder)
        documents = sum(size for path, size in found.items() if path not in before)
    return Update(fetched=plan.fetched, documents=documents, seconds=seconds, first_seconds=first)


@contextmanager
def _publisher(folder: Path) -> Iterator[Warehouse]:
    keys, repository = folder / "keys", Repository(folder / "repo")
    made = {
        role: make_key(keys, role, _PASSPHRASE)
        for role in ("root", "targets", ceremony.ONLINE, f"family-{FAMILY}")
    }
    signers = KeyFolders([keys], lambda _: _PASSPHRASE)
    first = ceremony.FirstKeys(
        root=[made["root"]],
        root_threshold=1,
        targets=made["targets"],
        online=made[ceremony.ONLINE],
        families={FAMILY: made[f"family-{FAMILY}"]},
    )
    ceremony.create(repository, first, signers, time.time())
    signers.keep_root(signers.root())
    yield Warehouse(
        folder=folder / "repo",
        blocks=BlockStore(folder / "repo" / "blocks"),
        shelf=SignedShelf(repository, signers, time.time),
        content_key=new_content_key(),
    )


def _publish(bundle: FolderBundle, warehouse: Warehouse) -> None:
    order = Order(bundle=bundle.folder, family=FAMILY)
    publish(order, warehouse, ConsoleReporter(Console(file=io.StringIO())))


def _box(folder: Path, warehouse: Warehouse) -> Box:
    root = (warehouse.folder / "metadata" / "1.root.json").read_bytes()
    wishes = Provisioning(model="bench", sources=(str(warehouse.folder),))
    box = provision(folder / "store", root, wishes)
    identity = box.own.identity("bench")
    wrapped = wrap_content_key(warehouse.content_key, identity.encryption_key)
    path = warehouse.folder / wrapped_key_path(wrapped.key, wrapped.recipient)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_wrapped_key(wrapped))
    return box


def _sync(box: Box) -> tuple[Plan, float]:
    sources = open_sources(box.device.sources, UpdatePolicy())
    began = time.perf_counter()
    outcome = sync(box, sources, time.time(), Wishes())
    seconds = time.perf_counter() - began
    assert outcome.plan is not None
    return outcome.plan, seconds


def _documents(repository: Path) -> dict[str, int]:
    """Sizes of metadata, releases and delta indexes; a timestamp counts with every version."""
    files = [*repository.glob("targets/*/*.json"), *repository.glob("deltas/*.json")]
    files += repository.glob("metadata/[0-9]*.json")
    timestamp = repository / "metadata" / "timestamp.json"
    sizes = {str(path): path.stat().st_size for path in files}
    return sizes | {f"timestamp {timestamp.stat().st_mtime_ns}": timestamp.stat().st_size}
