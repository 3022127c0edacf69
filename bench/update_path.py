"""Outpost's own path of an update: a publisher and boxes in a folder, all real but the link."""

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
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.content_keys import (
    encode_wrapped_key,
    new_content_key,
    wrap_content_key,
    wrapped_key_path,
)
from outpost_runtime.update.policy import UpdatePolicy
from outpost_runtime.update.sources import open_sources
from outpost_runtime.update.sync import sync
from rich.console import Console

FAMILY = "bench"
_PASSPHRASE = "only for the bench"  # noqa: S105 - protects nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A publisher's repository, and where boxes come from.

    Attributes:
        folder: Everything lies in it.
    """

    folder: Path
    warehouse: Warehouse

    @property
    def repository(self) -> Path:
        """The folder that a web server may serve."""
        return self.warehouse.folder

    def publish(self, bundle: FolderBundle) -> None:
        """Publish a bundle, with deltas from what was published under its name before."""
        order = Order(bundle=bundle.folder, family=FAMILY)
        publish(order, self.warehouse, ConsoleReporter(Console(file=io.StringIO())))

    def box(self, name: str = "box") -> Box:
        """Provision a new box that asks the repository's folder, and grant it the content key."""
        root = (self.repository / "metadata" / "1.root.json").read_bytes()
        wishes = Provisioning(model="bench", sources=(str(self.repository),))
        box = provision(self.folder / name, root, wishes)
        identity = box.own.identity("bench")
        wrapped = wrap_content_key(self.warehouse.content_key, identity.encryption_key)
        path = self.repository / wrapped_key_path(wrapped.key, wrapped.recipient)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_wrapped_key(wrapped))
        return box

    def documents(self) -> dict[str, int]:
        """Sizes of metadata, releases and delta indexes; a timestamp counts with every version."""
        files = [*self.repository.glob("targets/*/*.json"), *self.repository.glob("deltas/*.json")]
        files += self.repository.glob("metadata/[0-9]*.json")
        timestamp = self.repository / "metadata" / "timestamp.json"
        sizes = {str(path): path.stat().st_size for path in files}
        return sizes | {f"timestamp {timestamp.stat().st_mtime_ns}": timestamp.stat().st_size}


@contextmanager
def field() -> Iterator[Field]:
    """Make a publisher with keys and an empty repository; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        yield Field(folder=folder, warehouse=_warehouse(folder / "keys", folder / "repository"))


def bytes_of(old: FolderBundle, new: FolderBundle, base: FolderBundle | None = None) -> int:
    """Publish two bundles, take a box from one to the other, and return all bytes that came.

    Args:
        base: What both need; it is there before, and counts for nothing.
    """
    with field() as at:
        for bundle in (old,) if base is None else (base, old):
            at.publish(bundle)
        box = at.box()
        _sync(box)
        activate(box)
        before = at.documents().keys()
        at.publish(new)
        blocks = _sync(box)
        return blocks + sum(size for path, size in at.documents().items() if path not in before)


def activate(box: Box) -> None:
    """Let candidates be active without a gate."""
    box.store.change(lambda slots: activation.activate(slots, 0))


def _warehouse(keys: Path, folder: Path) -> Warehouse:
    repository = Repository(folder)
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
    return Warehouse(
        folder=folder,
        blocks=BlockStore(folder / "blocks"),
        shelf=SignedShelf(repository, signers, time.time),
        content_key=new_content_key(),
    )


def _sync(box: Box) -> int:
    """Return the bytes of blocks and deltas that came."""
    outcome = sync(box, open_sources(box.device.sources, UpdatePolicy()), time.time(), Wishes())
    assert outcome.plan is not None
    return outcome.plan.fetched
