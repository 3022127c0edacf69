"""The store of a device: verified bundles by digest, and slots that say which one a name means.

::

    STORE/bundles/<digest>/…      verified bundles, read-only from then on
    STORE/bundles/.incoming-*     a bundle on its way in; swept at the next change
    STORE/slots/<name>.json       what a name points at; see update/slot_files.py
    STORE/measured/<digest>.json  what runs of a bundle take; see footprint.py
    STORE/.lock                   held by whoever changes the store

A change is visible only by the replacement of slot files, which comes last.
Whatever is cut off before it leaves the store as it was.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from outpost_runtime.bundle import (
    Bundle,
    Progress,
    check_no_strangers,
    check_runnable,
    read_bundle,
    read_file,
    sync_folder,
    verify,
    write_durably,
)
from outpost_runtime.errors import BundleError, NotFoundError, StoreError
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.manifest import MANIFEST_NAME
from outpost_runtime.update.activation import Change
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.device import is_provisioned
from outpost_runtime.update.key_ring import KeyRing, open_ring
from outpost_runtime.update.release_files import ReleaseFiles
from outpost_runtime.update.sealed import open_sealed
from outpost_runtime.update.slot_files import SlotFiles
from outpost_runtime.update.slots import SYSTEM, Event, Slot

DEFAULT_STORE = Path("/var/lib/outpost/store")
SPARE_BYTES = 16 << 20
"""Left free on the disk by every change, for slot files, logs and the box's own life."""


class Store:
    """A store on disk.

    Args:
        folder: Where it is, or shall be at the first :meth:`add`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bundles = folder / "bundles"
        self._files = SlotFiles(folder)
        self.releases = ReleaseFiles(folder / "releases")
        self.blocks = BlockStore(folder / "blocks")
        self._ring: KeyRing | None = None

    def add(self, folder: Path, progress: Progress | None = None) -> Bundle:
        """Verify a bundle, copy it in, and make it the active one of its name.

        1. Read the manifest; refuse a foreign target, strangers in the folder, an adapter
           whose base is not active, a full disk.
        2. Copy every file into a hidden folder, checking its digest on the way.
        3. Rename that folder to the bundle's digest.
        4. Replace the slot.
        5. Remove bundles that no slot names any more.

        Returns:
            The bundle as it lies in the store.

        Raises:
            BundleError: The bundle is damaged or incomplete; the store is as it was.
            UnsupportedError: It is for another runtime; the store is as it was.
            StoreError: The store cannot be written, has no room, or has not the adapter's
                base; it is as it was.
        """
        if is_provisioned(self.folder):
            raise StoreError(
                f"{self.folder} belongs to a box that takes signed bundles only.",
                hint="Publish the bundle and bring it with 'outpost sync' or 'outpost import'.",
            )
        bundle = read_bundle(folder)
        check_runnable(bundle)
        check_no_strangers(bundle)
        with self._changing():
            self._check_base(bundle)
            stored = self._stored(bundle.digest) or self._copy_in(bundle, progress)
            self._activate(stored)
            self._collect()
        return stored

    def names(self) -> list[str]:
        """Return every model name that has an active bundle."""
        return [n for n in self._files.names() if n != SYSTEM and self._is_active(n)]

    def slot(self, name: str) -> Slot:
        """Return what a model name points at.

        Raises:
            NotFoundError: There is no slot of that name.
            StoreError: The slot file is damaged.
        """
        return self._files.read(name)

    def slots(self) -> dict[str, Slot]:
        """Return every slot by name, without damaged ones, which name nothing."""
        found = {}
        for name in self._files.names():
            with contextlib.suppress(StoreError, NotFoundError):
                found[name] = self.slot(name)
        return found

    def model_slots(self) -> dict[str, Slot]:
        """Return the same without the slot of the box's system."""
        return {name: slot for name, slot in self.slots().items() if name != SYSTEM}

    def has_damaged_slots(self) -> bool:
        """Say whether a slot file cannot be read, so that what it names is unknown."""
        return len(self.slots()) < len(self._files.names())

    def active(self, name: str) -> Bundle:
        """Return the bundle that is served under a name; its files are not checked.

        Raises:
            NotFoundError: There is none.
            StoreError: The slot file is damaged.
            BundleError: The bundle is not here, or its manifest is damaged.
        """
        slot = self.slot(name)
        if slot.active is None:
            raise NotFoundError(
                f"'{name}' has no bundle that has passed its gate.",
                hint="'outpost history' says why.",
            )
        return self.bundle(slot.active)

    def base_of(self, digest: str) -> str | None:
        """Return the digest of the base that an adapter's bundle hangs on; None for others.

        Raises:
            BundleError: The bundle is not here, or its manifest is damaged.
        """
        interface = self.bundle(digest).manifest.interface
        return interface.base if isinstance(interface, AdapterInterface) else None

    def change(self, decide: Callable[[dict[str, Slot]], Change | None]) -> Change | None:
        """Move slots: all that the change names, or none of them.

        Args:
            decide: Gets every slot as it is while nobody else can change it; None changes nothing.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._changing():
            change = decide(self.slots())
            if change is not None:
                self._files.apply(change)
                self._collect()
        return change

    def history(self) -> list[dict[str, object]]:
        """Return what became of this store's bundles, oldest first."""
        return self._files.history()

    def bundle(self, digest: str) -> Bundle:
        """Return a bundle of this store; its files are not checked.

        Raises:
            BundleError: It is not here, or its manifest is damaged.
        """
        if self.releases.has(digest):
            release = self.releases.read(digest)
            return open_sealed(release, self.blocks.read, self._secret(release.key))
        bundle = read_bundle(self._bundles / digest)
        if bundle.digest != digest:
            raise BundleError(f"{bundle.folder / MANIFEST_NAME} was changed in the store.")
        return bundle

    def _secret(self, key: str) -> bytes:
        if self._ring is None:
            self._ring = open_ring(self.folder)
        return self._ring.secret(key)

    def _is_active(self, name: str) -> bool:
        try:
            return self.slot(name).active is not None
        except NotFoundError:
            return False
        except StoreError:  # its loading says what is wrong
            return True

    def _check_base(self, bundle: Bundle) -> None:
        interface = bundle.manifest.interface
        if not isinstance(interface, AdapterInterface):
            return
        name = bundle.manifest.name
        active = {slot.active for other, slot in self.slots().items() if other != name}
        if interface.base not in active:
            raise StoreError(
                f"The adapter '{name}' needs its base '{interface.base_name}' "
                f"({interface.base[:12]}), which is not active in the store under a name of "
                "its own.",
                hint="Add the base's bundle first; the store is as it was.",
            )

    def _stored(self, digest: str) -> Bundle | None:
        # A bundle that is here and still right is not copied again; a damaged one is replaced.
        try:
            bundle = self.bundle(digest)
            verify(bundle)
        except BundleError:
            return None
        return bundle

    def _copy_in(self, bundle: Bundle, progress: Progress | None) -> Bundle:
        self._check_room(bundle)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._bundles))
        try:
            incoming.chmod(0o755)
            for name, entry in bundle.manifest.files.items():
                target = incoming / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    read_file(bundle, name, entry, file.write, progress)
                    file.flush()
                    os.fsync(file.fileno())
            for inner in (path for path in incoming.rglob("*") if path.is_dir()):
                sync_folder(inner)
            write_durably(incoming / MANIFEST_NAME, bundle.manifest_bytes)
            final = self._bundles / bundle.digest
            shutil.rmtree(final, ignore_errors=True)
            incoming.replace(final)
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        sync_folder(self._bundles)
        return self.bundle(bundle.digest)

    def _check_room(self, bundle: Bundle) -> None:
        free = shutil.disk_usage(self._bundles).free
        if bundle.size + SPARE_BYTES > free:
            raise StoreError(
                f"{self.folder} has {free:,} bytes free; "
                f"{bundle.manifest.name} needs {bundle.size:,} and {SPARE_BYTES:,} to spare.",
                hint="Free some space, then add the bundle again; the store is as it was.",
            )

    def _activate(self, bundle: Bundle) -> None:
        name = bundle.manifest.name
        before = self.slots().get(name, Slot())  # a damaged slot is healed by a new one
        if before.active != bundle.digest:
            slot = replace(
                before,
                active=bundle.digest,
                release=0,
                previous=before.active,
                previous_release=before.release,
                probation=None,
                candidate=None,
            )
            event = Event(at=int(time.time()), name=name, what="added", bundle=bundle.digest)
            self._files.apply(Change(slots={name: slot}, events=(event,)))

    def _collect(self) -> None:
        if self.has_damaged_slots():
            return  # what a damaged slot names is unknown; keep everything
        kept = {digest for slot in self.slots().values() for digest in slot.names()}
        for folder in self._bundles.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for path in (self.folder / "measured").glob("*.json"):
            if path.name.removesuffix(".json") not in kept:
                path.unlink(missing_ok=True)
        if self.releases.remove_others(kept | self.releases.expected()):
            with contextlib.suppress(BundleError):  # what an unreadable one needs is unknown
                self.blocks.remove(self.blocks.ids() - self.releases.blocks())

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            for folder in (self._bundles, self._files.slots):
                folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._sweep()
                self._files.redo()
                yield
        except OSError as error:
            raise StoreError(
                f"The store {self.folder} cannot be changed: {error.strerror or error}.",
                hint="Name a folder that you may write, with --store; the store is as it was.",
            ) from error

    def _sweep(self) -> None:
        for path in self._bundles.glob(".incoming-*"):
            shutil.rmtree(path, ignore_errors=True)
