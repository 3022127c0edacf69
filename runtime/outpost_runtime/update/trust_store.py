"""The trust of a device: what it has verified, and how it asks for what is newer.

The rules are in :mod:`outpost_runtime.update.trust`, the files in
:mod:`outpost_runtime.update.trust_files`; here they meet a fetcher.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import FetchError, NotFoundError, StoreError, TrustError
from outpost_runtime.update.fetch import Fetcher, read_whole
from outpost_runtime.update.generation import (
    Get,
    Judge,
    file_names,
    length_of,
    newest,
    read_generation,
)
from outpost_runtime.update.metadata import (
    Medium,
    MetaFile,
    Root,
    Snapshot,
    Timestamp,
    check_bytes,
    digest_of,
)
from outpost_runtime.update.offers import (
    Accepted,
    Refusal,
    SignedOffer,
    check_counter,
    choice,
    verified_release,
)
from outpost_runtime.update.release import Release
from outpost_runtime.update.seen import Seen, check_fresh, trusted_time
from outpost_runtime.update.trust import (
    MAX_ROOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    check_successor,
    check_timestamp,
    next_root,
    read_root,
    read_snapshot,
    read_timestamp,
)
from outpost_runtime.update.trust_files import ROOT, TrustFiles, Write

MAX_ROOT_STEPS = 256
"""Roots that one refresh follows; the next one goes on from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """What a refresh found.

    Attributes:
        changed: Whether the source had newer metadata than was here.
        offers: What may be installed now, as far as trust goes.
        refused: Families and offers that are not used, and why.
    """

    changed: bool
    offers: tuple[SignedOffer, ...]
    refused: tuple[Refusal, ...]


class TrustStore:
    """The trust of a provisioned device.

    Args:
        folder: ``STORE/trust``.
        write: How a file is replaced; it survives a power cut whole.
    """

    def __init__(self, folder: Path, write: Write = write_durably) -> None:
        self._files = TrustFiles(folder, write)

    @classmethod
    def provision(cls, folder: Path, root: bytes, write: Write = write_durably) -> "TrustStore":
        """Trust a root from now on; what was accepted before stays on record.

        Raises:
            TrustError: It is no root, or not signed as it demands itself.
            StoreError: The folder cannot be written.
        """
        read_root(root)
        store = cls(folder, write)
        with store._files.changing():
            store._files.write(ROOT, root)
        return store

    def refresh(self, fetcher: Fetcher, now: float, *, from_stick: bool = False) -> Refreshed:
        """Ask a source for newer metadata, and verify it.

        1. Follow the chain of roots, each one kept at once.
        2. Fetch the timestamp; raise the lower bounds by it.
        3. Fetch what it names and is not here; each file kept once its digest is right.
        4. Keep the timestamp: from then on the new generation counts.

        An idle source is asked for two files: the next root, which it has not, and the timestamp.

        Args:
            fetcher: The source; trusted for nothing.
            now: The box's clock, in seconds since 1970.
            from_stick: Whether the source was carried here; its ``stick.json`` is asked for.

        Raises:
            TrustError: The source's metadata may not be used; nothing new may be installed.
            FetchError: The source failed, or has not what its metadata names.
            StoreError: This box is not provisioned, or its folder cannot be written.
        """
        medium = Medium.STICK if from_stick else Medium.NETWORK
        with self._files.changing():
            root = self._follow_root(fetcher)
            stored = self._timestamps(root)
            seen = self._seen(root, stored)
            check_fresh(root, ROOT, trusted_time(now, root, seen))
            timestamp, new = _newer_timestamp(fetcher, root, medium, seen, stored)
            seen = self._raise_seen(seen.raised_by(timestamp, root))
            time = trusted_time(now, root, seen)
            check_fresh(root, ROOT, time)
            check_fresh(timestamp, f"{medium.value}.json", time)
            before = self._snapshot(root, newest(stored))
            judge = Judge(time=time, before=before)
            found = read_generation(root, timestamp, self._fetching(fetcher), judge)
            if new is not None:
                self._files.write(f"{medium.value}.json", new)
                self._files.sweep(file_names(found.snapshot) | file_names(before))
            chosen = choice(found.families, self._files.accepted(), time)
        changed = before is None or before.version != found.snapshot.version
        return Refreshed(changed=changed, offers=chosen.offers, refused=chosen.refused)

    def offers(self) -> tuple[SignedOffer, ...]:
        """Return what was offered at the last refresh, without asking anybody.

        Expiry is not looked at: this is for showing. What :meth:`refresh` returns may be
        installed.

        Raises:
            TrustError: A file is damaged, or an update was cut off: refresh again.
            StoreError: This box is not provisioned.
        """
        root = self._root()
        timestamp = newest(self._timestamps(root))
        if timestamp is None:
            return ()
        found = read_generation(root, timestamp, self._stored)
        return choice(found.families, self._files.accepted()).offers

    def release(self, fetcher: Fetcher, signed: SignedOffer) -> Release:
        """Fetch the release that an offer names, and verify it.

        Raises:
            TrustError: It is another file, or older than what this box has accepted.
            FetchError: The source failed or has not the file.
        """
        check_counter(signed, self._files.accepted())
        data = _fetched(fetcher, signed.stored_path, signed.length)
        return verified_release(signed, data)

    def accept(self, signed: SignedOffer) -> None:
        """Record that a release is going to be installed: nothing older is from now on.

        Raises:
            TrustError: It is older itself.
            StoreError: The record cannot be written.
        """
        one = Accepted(family=signed.family, release=signed.offer.release)
        with self._files.changing():
            accepted = self._files.accepted()
            check_counter(signed, accepted)
            if accepted.get(signed.offer.name) != one:
                self._files.write_accepted({**accepted, signed.offer.name: one})

    def time(self, now: float) -> float:
        """Return the time to judge by, in seconds since 1970: never below signed evidence.

        Raises:
            StoreError: This box is not provisioned.
        """
        root = self._root()
        return trusted_time(now, root, self._seen(root, self._timestamps(root)))

    def _root(self) -> Root:
        data = self._files.read(ROOT, MAX_ROOT_BYTES)
        try:
            if data is not None:
                return read_root(data)
        except TrustError as error:
            raise self._unprovisioned("is damaged") from error
        raise self._unprovisioned("cannot be read")

    def _unprovisioned(self, what: str) -> StoreError:
        return StoreError(
            f"{self._files.folder / ROOT} {what}: this box does not know whom to trust.",
            hint="Provision it with the publisher's root.json; its models go on running.",
        )

    def _follow_root(self, fetcher: Fetcher) -> Root:
        root = self._root()
        for _ in range(MAX_ROOT_STEPS):
            path = f"metadata/{root.version + 1}.root.json"
            try:
                data = read_whole(fetcher, path, limit=MAX_ROOT_BYTES)
            except NotFoundError:
                break
            root = next_root(root, data)
            self._files.write(ROOT, data)
        return root

    def _timestamps(self, root: Root) -> dict[Medium, Timestamp]:
        stored = {}
        for medium in Medium:
            data = self._files.read(f"{medium.value}.json", MAX_TIMESTAMP_BYTES)
            # A damaged one, or one whose keys were replaced, is fetched again.
            with contextlib.suppress(TrustError):
                if data is not None:
                    stored[medium] = read_timestamp(root, data, medium)
        return stored

    def _seen(self, root: Root, stored: Mapping[Medium, Timestamp]) -> Seen:
        seen = self._files.seen().under(root)
        for timestamp in stored.values():
            seen = seen.raised_by(timestamp, root)
        return seen

    def _raise_seen(self, seen: Seen) -> Seen:
        if seen != self._files.seen():
            self._files.write_seen(seen)
        return seen

    def _snapshot(self, root: Root, timestamp: Timestamp | None) -> Snapshot | None:
        if timestamp is None:
            return None
        try:
            data = self._stored("snapshot", timestamp.snapshot_meta)
            return read_snapshot(root, timestamp, data)
        except TrustError:  # damaged, or its keys were replaced
            return None

    def _stored(self, role: str, meta: MetaFile) -> bytes:
        name = f"{meta.version}.{role}.json"
        data = self._files.read(name, length_of(role, meta))
        if data is None:
            raise TrustError(
                f"{self._files.folder / name} is missing or damaged.",
                hint="Refresh the metadata from its source again.",
            )
        check_bytes(data, meta.length, digest_of(meta), name)
        return data

    def _fetching(self, fetcher: Fetcher) -> Get:
        def get(role: str, meta: MetaFile) -> bytes:
            name, length = f"{meta.version}.{role}.json", length_of(role, meta)
            with contextlib.suppress(TrustError):
                return self._stored(role, meta)
            data = _fetched(fetcher, f"metadata/{name}", length)
            check_bytes(data, meta.length, digest_of(meta), name)
            self._files.write(name, data)
            return data

        return get


def _newer_timestamp(
    fetcher: Fetcher, root: Root, medium: Medium, seen: Seen, stored: Mapping[Medium, Timestamp]
) -> tuple[Timestamp, bytes | None]:
    name = f"{medium.value}.json"
    data = _fetched(fetcher, f"metadata/{name}", MAX_TIMESTAMP_BYTES)
    timestamp = read_timestamp(root, data, medium)
    check_timestamp(timestamp, seen)
    before, here = newest(stored), stored.get(medium)
    if before is not None:
        check_successor("snapshot.json", timestamp.snapshot_meta, before.snapshot_meta)
    if here is not None and here.version == timestamp.version:
        return here, None
    return timestamp, data


def _fetched(fetcher: Fetcher, path: str, limit: int) -> bytes:
    try:
        return read_whole(fetcher, path, limit=limit)
    except NotFoundError as error:
        raise FetchError(
            f"{fetcher.label} has no {path}.",
            hint="It is no repository, or one that is not complete.",
        ) from error
