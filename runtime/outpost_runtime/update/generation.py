"""A generation: the metadata that one timestamp names, read from the top down.

Pure, but for whoever gives the bytes. A family whose bytes are right but whose content is not
(another's signature, another form) is refused alone; wrong bytes are the source's fault, and
refuse everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outpost_runtime.errors import TrustError
from outpost_runtime.update.metadata import (
    Medium,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from outpost_runtime.update.seen import check_fresh
from outpost_runtime.update.trust import (
    FAMILY_ROLE,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    check_snapshot,
    describe,
    families,
    read_family,
    read_snapshot,
    read_targets,
)

Get = Callable[[str, MetaFile], bytes]
"""Gives the file of a role; what it gives has been compared with how it was named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Metadata that was published together.

    Attributes:
        families: Every delegated family, the most trusted first; or why it is refused.
    """

    snapshot: Snapshot
    families: dict[str, Targets | TrustError]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What a new generation must keep to, before anything that it names is asked for.

    Attributes:
        time: When it must not have expired, in seconds since 1970.
        before: The snapshot that was here, or None.
    """

    time: float
    before: Snapshot | None

    def check(self, signed: Signed, name: str) -> None:
        """Refuse what has expired, and a snapshot that goes back.

        Raises:
            TrustError: It is one of these.
        """
        if isinstance(signed, Snapshot) and self.before is not None:
            check_snapshot(signed, self.before)
        check_fresh(signed, name, self.time)


def read_generation(
    root: Root, timestamp: Timestamp, get: Get, judge: Judge | None = None
) -> Generation:
    """Read everything that a timestamp names.

    Raises:
        TrustError: A file is not what was named, or the judge refuses it.
        OutpostError: What ``get`` raises.
    """
    snapshot = read_snapshot(root, timestamp, get("snapshot", timestamp.snapshot_meta))
    if judge is not None:
        judge.check(snapshot, "snapshot.json")
    targets = read_targets(root, snapshot, get("targets", describe(snapshot, "targets")))
    if judge is not None:
        judge.check(targets, "targets.json")
    found = {family: _family(targets, snapshot, family, get) for family in families(targets)}
    return Generation(snapshot=snapshot, families=found)


def newest(timestamps: Mapping[Medium, Timestamp]) -> Timestamp | None:
    """Return the timestamp whose generation counts: the one that names the newest snapshot."""
    found = timestamps.values()
    return max(found, key=lambda one: one.snapshot_meta.version, default=None)


def length_of(role: str, meta: MetaFile) -> int:
    """Return the length of a role's file, before a byte of it is read.

    Raises:
        TrustError: It is larger than any such file may be.
    """
    most = MAX_SNAPSHOT_BYTES if role == "snapshot" else MAX_TARGETS_BYTES
    if meta.length is None or meta.length > most:
        raise TrustError(f"{role}.json is named with {meta.length} bytes; {most:,} are allowed.")
    return meta.length


def file_names(snapshot: Snapshot | None) -> frozenset[str]:
    """Return how the files of a snapshot's generation are called, itself included."""
    if snapshot is None:
        return frozenset()
    named = {f"{meta.version}.{name}" for name, meta in snapshot.meta.items()}
    return frozenset(named | {f"{snapshot.version}.snapshot.json"})


def _family(targets: Targets, snapshot: Snapshot, family: str, get: Get) -> Targets | TrustError:
    role = FAMILY_ROLE + family
    try:
        meta = describe(snapshot, role)
        length_of(role, meta)
    except TrustError as error:
        return error
    data = get(role, meta)
    try:
        return read_family(targets, snapshot, family, data)
    except TrustError as error:
        return error
