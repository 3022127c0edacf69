"""A box's system on disk: what runs, and the files of the next one until they are in their slots.

::

    STORE/system/<image>_<number>.…    for systemd-sysupdate; plain, as every system is
    STORE/system/tried                 digest of the bundle that the box was restarted for
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from outpost_runtime.bundle import Bundle, check_no_strangers, read_file, sync_folder, write_durably
from outpost_runtime.errors import BundleError, StoreError, TrustError
from outpost_runtime.store import SPARE_BYTES, Store
from outpost_runtime.update.activation import Change, refuse
from outpost_runtime.update.slots import SYSTEM, Slot
from outpost_runtime.update.system import Running, check_system, parse_os_release, settle, why_wait

_OS_RELEASE = Path("/usr/lib/os-release")
_TRIED = "tried"
_ZEROS = bytes(1 << 20)


def running_system(os_release: Path = _OS_RELEASE) -> Running | None:
    """Return the system that runs; None on a machine that runs no image of ours."""
    try:
        return parse_os_release(os_release.read_text("utf-8"))
    except (OSError, ValueError):
        return None


class NextSystem:
    """The candidate of a box's system.

    Args:
        store: The box's; whoever calls :meth:`stage` keeps updates of models away meanwhile.
        running: What the box runs.
    """

    def __init__(
        self, store: Store, running: Running, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._running = running
        self._clock = clock
        self._folder = store.folder / "system"

    def stage(self) -> str | None:
        """Write the candidate's files for systemd-sysupdate, checked; None where there is none.

        A candidate that is no newer system of this image is refused. One that runs already is
        settled.

        Returns:
            Its version.

        Raises:
            StoreError: The disk does not take the files, or has no room.
            BundleError: A block is damaged; the next ``outpost sync`` brings it again.
        """
        self.settle()
        slot = self._slot()
        if slot.candidate is None or why_wait(self._store.slots()):
            return None
        bundle = self._store.bundle(slot.candidate.bundle)
        try:
            check_system(bundle.manifest, self._running)
        except TrustError as error:
            reason = error.message
            self._change(lambda slot: refuse(SYSTEM, slot, reason, int(self._clock())))
            return None
        self._write(bundle)
        return bundle.manifest.version

    def note_try(self) -> None:
        """Note that the box is about to be restarted for the candidate.

        Raises:
            StoreError: The disk does not take it.
        """
        slot = self._slot()
        if slot.candidate is None:
            raise StoreError("There is no system that could be tried.")
        try:
            write_durably(self._folder / _TRIED, slot.candidate.bundle.encode())
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def settle(self) -> str:
        """Note what became of a candidate that was started; returns it for people."""
        slot = self._slot()
        if slot.candidate is None:
            self._clean()
            return "no system waits"
        version = self._store.releases.read(slot.candidate.bundle).version
        tried = self._tried()
        change = self._change(
            lambda slot: settle(slot, version, self._running, tried, int(self._clock()))
        )
        if change is None:
            return f"system {version} waits"
        self._clean()
        event = change.events[0]
        return f"system {version} is {event.what}. {event.reason}".rstrip()

    def _slot(self) -> Slot:
        return self._store.slots().get(SYSTEM, Slot())

    def _change(self, decide: Callable[[Slot], Change | None]) -> Change | None:
        def decide_all(slots: dict[str, Slot]) -> Change | None:
            slot = slots.get(SYSTEM, Slot())
            return None if slot.candidate is None else decide(slot)

        return self._store.change(decide_all)

    def _tried(self) -> str | None:
        try:
            return (self._folder / _TRIED).read_text("ascii")
        except (OSError, ValueError):
            return None

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, bundle: Bundle) -> None:
        check_no_strangers(bundle)
        self._clean()
        self._check_room(bundle)
        try:
            self._folder.mkdir(mode=0o750)
            for name in bundle.manifest.files:
                self._write_file(bundle, name)
            sync_folder(self._folder)
        except OSError as error:
            self._clean()
            raise _unwritable(self._folder, error) from error
        except BundleError:
            self._clean()
            raise

    def _check_room(self, bundle: Bundle) -> None:
        """Write nothing that cannot be written whole: it is tried again and again."""
        release = self._store.releases.read(bundle.digest)
        needed = sum({block.id: block.size for block in release.blocks()}.values())  # holes are one
        free = shutil.disk_usage(self._store.folder).free
        if needed + SPARE_BYTES > free:
            raise StoreError(
                f"{self._store.folder} has no room for the next system: it needs {needed:,} bytes "
                f"for a while, {SPARE_BYTES:,} to spare, and has {free:,}.",
                hint="Free some space; what was fetched is kept.",
            )

    def _write_file(self, bundle: Bundle, name: str) -> None:
        hidden = self._folder / f".{name}"  # until it is whole, nobody takes it for a system
        with hidden.open("wb") as file:

            def write(piece: bytes) -> None:
                if piece == _ZEROS[: len(piece)]:  # slots are larger than what is in them
                    file.seek(len(piece), 1)
                    return
                file.write(piece)

            read_file(bundle, name, bundle.manifest.files[name], write)
            file.truncate(bundle.manifest.files[name].size)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(self._folder / name)


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder} cannot be written: {error.strerror or error}.",
        hint="Free some space; the system that runs goes on.",
    )
