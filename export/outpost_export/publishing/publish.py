"""Publishing a bundle: blocks, deltas and a release in a repository, and a signed offer last.

A publication that is cut off anywhere leaves blocks that nobody names: the repository is as
valid as before, and the next publication goes on from them. Only what is not there is written, so
publishing a bundle again moves no bytes. Memory holds a few blocks, whatever the bundle's size.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from outpost_runtime.bundle import (
    Bundle,
    FolderBundle,
    read_bundle,
    sync_folder,
    verify,
    write_durably,
)
from outpost_runtime.errors import BusyError
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.manifest import MANIFEST_NAME
from outpost_runtime.update.content_keys import content_key_id
from outpost_runtime.update.delta_index import delta_path
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.release import (
    MAX_RELEASE_BYTES,
    Base,
    Block,
    DeltaReference,
    Release,
    ReleasedFile,
    encode_release,
)

from outpost_export.errors import PublishError
from outpost_export.progress import Reporter
from outpost_export.publishing.bundle_pieces import encoded_pieces
from outpost_export.publishing.encoding import Encoded, Stored
from outpost_export.publishing.predecessors import Predecessor, newest, note, predecessors
from outpost_export.publishing.publication import Order, Publication, Warehouse
from outpost_export.publishing.shelf import Blocks

_COMMIT_BLOCKS = 32
_LOCK_NAME = ".lock"


def publish(order: Order, warehouse: Warehouse, reporter: Reporter) -> Publication:
    """Publish a bundle.

    1. Verify the bundle, and that its base is published.
    2. Find its predecessors, whose blocks a box may have.
    3. Cut its files and encode the pieces; write blocks and deltas that are not there.
    4. Write the indexes of deltas.
    5. Sign the offer, with the release.

    Raises:
        BundleError: The bundle is damaged.
        BusyError: The repository is being changed by another command.
        PublishError: It cannot be published so, or the disk refuses.
        StoreError: The disk refuses a block.
        TrustError: The repository's metadata is not signed by its own keys.
    """
    bundle = read_bundle(order.bundle)
    with reporter.step("verifying", bundle.size) as advance:
        verify(bundle, advance)
    if order.dry_run:
        return _publish(bundle, order, warehouse, reporter)
    with changing(warehouse.folder):
        return _publish(bundle, order, warehouse, reporter)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keep other commands from adding files to a repository or removing some, meanwhile.

    Raises:
        BusyError: One is at it.
        PublishError: The disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise BusyError(f"Another command is changing {folder}.") from error
    except OSError as error:
        raise PublishError(f"{folder} cannot be changed: {error.strerror or error}.") from error


def _publish(
    bundle: FolderBundle, order: Order, warehouse: Warehouse, reporter: Reporter
) -> Publication:
    offers = sorted(warehouse.shelf.offers(), key=lambda offer: -offer.release)
    _check_base(bundle, offers)
    found = list(predecessors(bundle, order, offers, warehouse))
    writer = _Writer(warehouse.blocks, dry_run=order.dry_run)
    files = []
    with reporter.step("cutting and encrypting", bundle.size) as advance:
        for name, encoded in encoded_pieces(bundle, warehouse, found):
            advance(encoded.block.size)
            writer.write(encoded)
            note(encoded, found)
            files.append((name, encoded.block))
        writer.commit()
    references = [_write_index(predecessor, order, warehouse) for predecessor in found]
    release = _release(bundle, warehouse, files, [r for r in references if r is not None])
    offer, is_new = _offered(order, release, newest(bundle, offers, found), warehouse)
    sizes = {block.id: block.stored for _, block in files}
    return Publication(
        offer=offer,
        is_new=is_new,
        blocks=len(sizes),
        stored=sum(sizes.values()),
        new_blocks=writer.blocks,
        new_deltas=writer.deltas,
        new_bytes=writer.bytes,
        ways=tuple(p.way(sizes) for p in found if p.release.bundle != bundle.digest),
    )


class _Writer:
    """Writes what is not there, and counts it."""

    def __init__(self, blocks: Blocks, *, dry_run: bool) -> None:
        self._blocks = blocks
        self._dry_run = dry_run
        self._seen: set[str] = set()
        self._staged = 0
        self.blocks = self.deltas = self.bytes = 0

    def write(self, encoded: Encoded) -> None:
        if encoded.stored is not None:
            self.blocks += self._write(encoded.stored, heals=encoded.heals)
        for found in encoded.deltas:
            if found is not None:
                self.deltas += self._write(found[1], heals=False)

    def commit(self) -> None:
        if not self._dry_run:
            self._blocks.commit()
        self._staged = 0

    def _write(self, stored: Stored, *, heals: bool) -> int:
        if stored.id in self._seen or (self._blocks.has(stored.id) and not heals):
            return 0
        self._seen.add(stored.id)
        self.bytes += len(stored.data)
        if not self._dry_run:
            self._blocks.stage(stored.id, stored.data)
            self._staged += 1
            if self._staged >= _COMMIT_BLOCKS:
                self.commit()
        return 1


def _check_base(bundle: Bundle, offers: Iterable[Offer]) -> None:
    interface = bundle.manifest.interface
    if not isinstance(interface, AdapterInterface):
        return
    if interface.base not in {offer.bundle for offer in offers}:
        raise PublishError(
            f"'{bundle.manifest.name}' is an adapter of '{interface.base_name}' "
            f"({interface.base[:12]}), which this repository does not offer.",
            hint="Publish that bundle first; a box needs both.",
        )


def _write_index(
    predecessor: Predecessor, order: Order, warehouse: Warehouse
) -> DeltaReference | None:
    data = predecessor.index()
    if not data:
        return None
    digest = hashlib.sha256(data).hexdigest()
    path = warehouse.folder / delta_path(digest)
    if not order.dry_run and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(warehouse.folder)
        write_durably(path, data)
    return DeltaReference(
        bundle=predecessor.release.bundle,
        index=digest,
        index_bytes=len(data),
        stored=sum(delta.stored for delta in predecessor.deltas.values()),
    )


def _release(
    bundle: Bundle,
    warehouse: Warehouse,
    files: Sequence[tuple[str, Block]],
    references: Sequence[DeltaReference],
) -> Release:
    manifest, interface = bundle.manifest, bundle.manifest.interface
    base = None
    if isinstance(interface, AdapterInterface):
        base = Base(name=interface.base_name, bundle=interface.base)
    names = sorted({MANIFEST_NAME, *manifest.files})
    blocks = {name: tuple(block for other, block in files if other == name) for name in names}
    return Release(
        name=manifest.name,
        version=manifest.version,
        target=manifest.target,
        bundle=bundle.digest,
        base=base,
        key=content_key_id(warehouse.content_key),
        memory_bytes=manifest.memory_bytes,
        files=tuple(ReleasedFile(name=name, blocks=blocks[name]) for name in names),
        deltas=tuple(references),
    )


def _offered(
    order: Order, release: Release, offered: Predecessor | None, warehouse: Warehouse
) -> tuple[Offer, bool]:
    data = encode_release(release)
    if len(data) > MAX_RELEASE_BYTES:
        raise PublishError(
            f"The release has {len(data):,} bytes; {MAX_RELEASE_BYTES:,} is the most."
        )
    offer = Offer(
        name=release.name,
        version=release.version,
        release=0,
        target=release.target,
        bundle=release.bundle,
        devices=order.devices,
        minimum_runtime=order.minimum_runtime,
        rollout=order.rollout,
    )
    if offered is not None and (offered.release, replace(offered.offer, release=0)) == (
        release,
        offer,
    ):
        return offered.offer, False
    if order.dry_run:
        return offer, True
    return warehouse.shelf.add(order.family, offer, data), True
