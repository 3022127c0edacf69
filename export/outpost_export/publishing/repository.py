"""A repository's folder, as its publisher writes it.

A publication is signed completely, read back as a box would read it, and laid down in
``metadata/.publishing/``. Only then its files are copied to their places, the timestamps after
everything that they name. Cut off before, nothing was published; cut off after, whoever opens
the repository next finishes it. A reader never sees a file before what it names.

Before anything is edited, everything is verified, from the root that is kept with the keys: who
can write to the folder, but has no key, gets nothing signed.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from outpost_runtime.bundle import sync_folder, write_durably
from outpost_runtime.errors import BusyError, TrustError
from outpost_runtime.update.generation import read_generation
from outpost_runtime.update.metadata import (
    MEDIUM,
    Delegations,
    Medium,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    check_bytes,
    digest_of,
    published,
)
from outpost_runtime.update.trust import (
    FAMILY_ROLE,
    MAX_TARGETS_BYTES,
    describe,
    next_root,
    read_root,
    read_targets,
    read_timestamp,
)
from outpost_runtime.update.trust_files import Write

from outpost_export.errors import PublishError
from outpost_export.publishing.signers import Signers
from outpost_export.publishing.signing import (
    LONGEST_PAUSE,
    Draft,
    Lifetimes,
    check_readable,
    signed_files,
    unsigned_family,
)

_STAGED = ".publishing"


class Repository:
    """A repository on this machine's disk.

    Args:
        folder: Where it is, or shall be.
        lifetimes: When what is signed from now on expires.
        write: How a file is replaced; it survives a power cut whole.
        longest_pause: Seconds since the last publication after which the clock is not believed.
    """

    def __init__(
        self,
        folder: Path,
        lifetimes: Lifetimes | None = None,
        write: Write = write_durably,
        longest_pause: float = LONGEST_PAUSE,
    ) -> None:
        self.folder = folder
        self._longest_pause = longest_pause
        self._lifetimes = lifetimes or Lifetimes()
        self._write = write
        self._metadata = folder / "metadata"

    @contextlib.contextmanager
    def creating(self, signers: Signers, now: float) -> Iterator[Draft]:
        """Make a repository from the draft that the block fills in.

        Raises:
            PublishError: There is one already, a key is missing, or the disk refuses.
            BusyError: Another publisher is at work on it.
        """
        with self._held():
            if self.exists():
                raise PublishError(f"{self.folder} is a repository already.")
            draft = _empty_draft()
            yield draft
            self._publish(draft, signers, now)

    @contextlib.contextmanager
    def editing(self, signers: Signers, now: float) -> Iterator[Draft]:
        """Publish what the block changes in the draft; nothing, if it fails.

        Raises:
            PublishError: There is no repository, a key is missing, or the disk refuses.
            TrustError: What is published is not signed by the keys that lead on from the
                signers' root, or a box would refuse what would be.
            BusyError: Another publisher is at work on it.
        """
        self.check_exists()
        with self._held():
            draft = self.read(signers)
            yield draft
            self._publish(draft, signers, now)

    def exists(self) -> bool:
        """Say whether there is a repository."""
        return bool(self._root_versions())

    def check_exists(self) -> None:
        """Refuse a folder that is no repository.

        Raises:
            PublishError: It is none.
        """
        if not self.exists():
            raise PublishError(
                f"{self.folder} is no repository.",
                hint="Make one with 'outpost-export keys init'.",
            )

    def add_file(self, path: str, data: bytes) -> None:
        """Write a file that is named by its content.

        Raises:
            PublishError: The disk refuses.
        """
        place = self.folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._write(place, data)
            sync_folder(place.parent.parent)
        except OSError as error:
            raise PublishError(f"{place} cannot be written: {error.strerror or error}.") from error

    def read(self, signers: Signers) -> Draft:
        """Return what is published, verified but for its expiry.

        Args:
            signers: Who knows the root to judge it by.

        Raises:
            PublishError: There is no repository, or no root to judge it by.
            TrustError: It is not signed by the keys that lead on from that root.
        """
        self.check_exists()
        root = self._follow_root(signers)
        timestamps = {
            medium: read_timestamp(root, self._get(f"{medium.value}.json"), medium)
            for medium in Medium
        }
        newest = timestamps[Medium.NETWORK]
        found = read_generation(root, newest, self._get_named)
        families = {}
        for family, targets in found.families.items():
            if f"{FAMILY_ROLE}{family}.json" not in found.snapshot.meta:
                families[family] = unsigned_family()
            elif isinstance(targets, TrustError):
                raise targets
            else:
                families[family] = targets
        meta = describe(found.snapshot, "targets")
        return Draft(
            root=root,
            targets=read_targets(root, found.snapshot, self._get_named("targets", meta)),
            families=families,
            snapshot=found.snapshot,
            timestamps=timestamps,
            before=read_root(signers.root()),
            published=max(published(root), *map(published, timestamps.values())),
        )

    def _follow_root(self, signers: Signers) -> Root:
        root, newest = read_root(signers.root()), max(self._root_versions())
        if newest < root.version:
            raise TrustError(
                f"{self.folder} has root {newest}; these keys have seen {root.version}.",
                hint="It was put back to an older state: restore the newest one.",
            )
        while root.version < newest:
            data = self._get(f"{root.version + 1}.root.json")
            root = next_root(root, data)
            signers.keep_root(data)
        return root

    def _publish(self, draft: Draft, signers: Signers, now: float) -> None:
        files = signed_files(draft, signers, now, self._lifetimes, self._longest_pause)
        new = dict(files)
        check_readable(draft, lambda name: new[name] if name in new else self._get(name))
        staging = self._metadata / f"{_STAGED}.new"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for place, (name, data) in enumerate(files):
            self._write(staging / f"{place:06}.{name}", data)
        staging.rename(self._metadata / _STAGED)
        sync_folder(self._metadata)
        self._finish()
        signers.keep_root(self._get(f"{draft.root.version}.root.json"))

    def _finish(self) -> None:
        staged = self._metadata / _STAGED
        for path in sorted(staged.glob("*.json")):
            _, _, name = path.name.partition(".")
            self._write(self._metadata / name, path.read_bytes())
        shutil.rmtree(staged, ignore_errors=True)

    def _root_versions(self) -> list[int]:
        names = [path.name.split(".")[0] for path in self._metadata.glob("*.root.json")]
        return [int(name) for name in names if name.isascii() and name.isdigit()]

    def read_file(self, path: str, limit: int) -> bytes:
        """Return a file's first bytes, one more than ``limit`` if it has them.

        Raises:
            PublishError: It cannot be read.
        """
        try:
            with (self.folder / path).open("rb") as file:
                return file.read(limit + 1)
        except OSError as error:
            raise PublishError(
                f"{self.folder / path} cannot be read: {error.strerror or error}.",
                hint="Name a complete repository, or restore this one.",
            ) from error

    def _get(self, name: str) -> bytes:
        return self.read_file(f"metadata/{name}", MAX_TARGETS_BYTES)

    def _get_named(self, role: str, meta: MetaFile) -> bytes:
        name = f"{meta.version}.{role}.json"
        data = self._get(name)
        check_bytes(data, meta.length, digest_of(meta), name)
        return data

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self._metadata.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            with (self._metadata / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._finish()
                yield
        except BlockingIOError as error:
            raise BusyError(f"Another publisher is at work on {self.folder}.") from error
        except OSError as error:
            raise PublishError(
                f"{self.folder} cannot be written: {error.strerror or error}."
            ) from error


def _empty_draft() -> Draft:
    draft = Draft(
        root=Root(consistent_snapshot=True),
        targets=Targets(delegations=Delegations({}, {})),
        families={},
        snapshot=Snapshot(meta={}),
        timestamps={
            Medium.NETWORK: Timestamp(),
            Medium.STICK: Timestamp(unrecognized_fields={MEDIUM: "stick"}),
        },
        changed={"root", "targets"},
    )
    for signed in (draft.root, draft.targets, draft.snapshot, *draft.timestamps.values()):
        signed.version = 0  # signing makes the next version
    return draft
