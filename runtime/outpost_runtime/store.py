"""The store of a device: verified bundles by digest, and slots that say which one a name means.

::

    STORE/bundles/<digest>/…      verified bundles, read-only from then on
    STORE/bundles/.incoming-*     a bundle on its way in; swept at the next change
    STORE/slots/<name>.json       {"active": digest, "previous": digest or null}
    STORE/measured/<digest>.json  what runs of a bundle take; see footprint.py
    STORE/.lock                   held by whoever changes the store

A change is visible only by the atomic replacement of a slot file, which comes
last. Whatever is cut off before it leaves the store as it was.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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
from outpost_runtime.documents import canonical_json, parse_json_object
from outpost_runtime.errors import BundleError, InvalidInputError, NotFoundError, StoreError
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.manifest import MANIFEST_NAME

DEFAULT_STORE = Path("/var/lib/outpost/store")
_SPARE_BYTES = 16 << 20
"""Left free on the disk by every change, for slot files, logs and the box's own life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What a model name points at."""

    active: str
    previous: str | None


class Store:
    """A store on disk.

    Args:
        folder: Where it is, or shall be at the first :meth:`add`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bundles = folder / "bundles"
        self._slots = folder / "slots"

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
        """Return every model name that has a slot."""
        return sorted(path.name.removesuffix(".json") for path in self._slots.glob("*.json"))

    def slot(self, name: str) -> Slot:
        """Return what a model name points at.

        Raises:
            NotFoundError: There is no slot of that name.
            StoreError: The slot file is damaged.
        """
        return _read_slot(self._slots / f"{name}.json")

    def bundle(self, digest: str) -> Bundle:
        """Return a bundle of this store; its files are not checked.

        Raises:
            BundleError: It is not here, or its manifest is damaged.
        """
        bundle = read_bundle(self._bundles / digest)
        if bundle.digest != digest:
            raise BundleError(f"{bundle.folder / MANIFEST_NAME} was changed in the store.")
        return bundle

    def _check_base(self, bundle: Bundle) -> None:
        interface = bundle.manifest.interface
        if not isinstance(interface, AdapterInterface):
            return
        name = bundle.manifest.name
        for other in self.names():
            with contextlib.suppress(StoreError):  # a damaged slot names nothing
                if other != name and self.slot(other).active == interface.base:
                    return
        raise StoreError(
            f"The adapter '{name}' needs its base '{interface.base_name}' ({interface.base[:12]}), "
            "which is not active in the store under a name of its own.",
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
        if bundle.size + _SPARE_BYTES > free:
            raise StoreError(
                f"{self.folder} has {free:,} bytes free; "
                f"{bundle.manifest.name} needs {bundle.size:,} and {_SPARE_BYTES:,} to spare.",
                hint="Free some space, then add the bundle again; the store is as it was.",
            )

    def _activate(self, bundle: Bundle) -> None:
        name = bundle.manifest.name
        path = self._slots / f"{name}.json"
        try:
            before = self.slot(name)
        except (NotFoundError, StoreError):  # a damaged slot is healed by a new one
            before = Slot(active="", previous=None)
        if before.active != bundle.digest:
            slot = {"active": bundle.digest, "previous": before.active or None}
            write_durably(path, canonical_json(slot))

    def _collect(self) -> None:
        try:
            slots = [self.slot(name) for name in self.names()]
        except StoreError:
            return  # nobody knows what the damaged slot still needs
        kept = {digest for slot in slots for digest in (slot.active, slot.previous)}
        for path in self._bundles.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
                (self.folder / "measured" / f"{path.name}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            for folder in (self._bundles, self._slots):
                folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._sweep()
                yield
        except OSError as error:
            raise StoreError(
                f"The store {self.folder} cannot be changed: {error.strerror or error}.",
                hint="Name a folder that you may write, with --store; the store is as it was.",
            ) from error

    def _sweep(self) -> None:
        for path in self._bundles.glob(".incoming-*"):
            shutil.rmtree(path, ignore_errors=True)


def _read_slot(path: Path) -> Slot:
    try:
        reader = parse_json_object(path.read_bytes(), path=str(path))
        slot = Slot(
            active=reader.string("active"), previous=reader.optional("previous", reader.string)
        )
        reader.end()
    except FileNotFoundError:
        raise NotFoundError(f"There is no model '{path.stem}' in the store.") from None
    except (InvalidInputError, OSError) as error:
        raise StoreError(
            f"The slot file {path} is damaged: {error}",
            hint="Add the model's bundle again.",
        ) from error
    return slot
