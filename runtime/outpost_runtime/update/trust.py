"""Which of a repository's metadata a box accepts: the client workflow of TUF 1.0.34.

Pure: bytes and what was trusted before go in; a verified object or an error comes out. The
rules, in the order of section 5 of the specification:

1. Root (5.3): one version after the other, each signed by the keys before it and by its own.
2. Timestamp (5.4): signed, never older than one seen, never naming an older snapshot.
3. Snapshot (5.5): the bytes that the timestamp names; nothing in it older or gone.
4. Targets (5.6): the bytes that the snapshot names. It delegates each family's
   ``<family>/*`` to the role ``family-<family>``, and that is the only level.
5. Expiry is asked apart, by :func:`outpost_runtime.update.seen.check_fresh`, for new installs.

Stricter than TUF asks: snapshots are consistent, and one version is one content.

Sticks. ``stick.json`` is a second timestamp with the field ``medium: "stick"`` and a later
expiry, for repositories that are carried. A network may not serve it, nor a stick the other.
"""

import re

from outpost_runtime.errors import TrustError
from outpost_runtime.update.metadata import (
    FOREIGN,
    DelegatedRole,
    Medium,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    check_described,
    check_signed,
    digest_of,
    medium_of,
    parse,
    published,
    verify,
    verify_named,
)
from outpost_runtime.update.seen import Seen

FAMILY_ROLE = "family-"
"""Before a family's name in its role's, so that no family can be called root."""

MAX_ROOT_BYTES = 512_000
MAX_TIMESTAMP_BYTES = 16_384
MAX_SNAPSHOT_BYTES = 2_000_000
MAX_TARGETS_BYTES = 5_000_000
"""Largest top-level targets, and largest family."""

_FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def read_root(data: bytes) -> Root:
    """Read a root that is trusted already: provisioned, or accepted by :func:`next_root`.

    Raises:
        TrustError: It is none, or it is not signed as it demands itself.
    """
    return _signed_by_itself(parse(Root, data, "root.json"))


def next_root(root: Root, data: bytes) -> Root:
    """Accept the root that follows a trusted one (5.3.4 to 5.3.7).

    Raises:
        TrustError: It is not signed by both roots' keys, or not the next version.
    """
    name = f"{root.version + 1}.root.json"
    metadata = parse(Root, data, name)
    check_signed(metadata, root, "root", name)
    if metadata.signed.version != root.version + 1:
        raise TrustError(f"{name} says that it is version {metadata.signed.version}.")
    return _signed_by_itself(metadata)


def read_timestamp(root: Root, data: bytes, medium: Medium) -> Timestamp:
    """Read a timestamp and check who signed it, and for what (5.4.2).

    Raises:
        TrustError: It is none, not signed by the timestamp keys, or for another medium.
    """
    name = f"{medium.value}.json"
    timestamp = verify(Timestamp, data, root, "timestamp", name)
    if medium_of(timestamp) is not medium:
        raise TrustError(
            f"{name} is a timestamp for another medium.",
            hint="What is made for sticks is taken from sticks only, and the other way round.",
        )
    published(timestamp)
    check_described(timestamp.snapshot_meta, "snapshot.json")
    return timestamp


def check_timestamp(timestamp: Timestamp, seen: Seen) -> None:
    """Refuse an older timestamp than one seen (5.4.3).

    Raises:
        TrustError: It, or the snapshot that it names, is older.
    """
    medium = medium_of(timestamp)
    least = seen.stick if medium is Medium.STICK else seen.timestamp
    _check_not_older(f"{medium.value}.json", timestamp.version, least)
    _check_not_older("snapshot.json", timestamp.snapshot_meta.version, seen.snapshot)


def read_snapshot(root: Root, timestamp: Timestamp, data: bytes) -> Snapshot:
    """Read the snapshot that a timestamp names (5.5.2 to 5.5.4).

    Raises:
        TrustError: It is another one, or not signed by the snapshot keys.
    """
    snapshot = verify_named(Snapshot, data, root, "snapshot", timestamp.snapshot_meta)
    for name, meta in snapshot.meta.items():
        check_described(meta, name)
    return snapshot


def check_snapshot(snapshot: Snapshot, before: Snapshot) -> None:
    """Refuse a snapshot in which a file is older than before, changed, or gone (5.5.5).

    Raises:
        TrustError: There is such a file; it is named.
    """
    for name, old in before.meta.items():
        new = snapshot.meta.get(name)
        if new is None:
            raise TrustError(f"{name} is gone from the new snapshot.json.")
        check_successor(name, new, old)


def check_successor(name: str, new: MetaFile, old: MetaFile) -> None:
    """Refuse an older version, and other bytes under the same version.

    Raises:
        TrustError: It is one of these.
    """
    _check_not_older(name, new.version, old.version)
    if new.version == old.version and digest_of(new) != digest_of(old):
        raise TrustError(f"Two different files say that they are version {new.version} of {name}.")


def read_targets(root: Root, snapshot: Snapshot, data: bytes) -> Targets:
    """Read the top-level targets, which delegate the families (5.6.2 to 5.6.4).

    Raises:
        TrustError: They are others than the snapshot names, not signed by the targets keys,
            or not of Outpost's form.
    """
    targets = verify_named(Targets, data, root, "targets", describe(snapshot, "targets"))
    if targets.targets:
        raise TrustError("targets.json has targets of its own.", hint=FOREIGN)
    for role in _delegations(targets):
        _check_delegation(role)
    return targets


def read_family(targets: Targets, snapshot: Snapshot, family: str, data: bytes) -> Targets:
    """Read a family's targets (5.6.7).

    Raises:
        TrustError: They are others than the snapshot names, not signed by the family's keys,
            or delegate further.
    """
    role = FAMILY_ROLE + family
    signed = verify_named(Targets, data, targets, role, describe(snapshot, role))
    if signed.delegations is not None:
        raise TrustError(f"{role}.json delegates further.", hint=FOREIGN)
    return signed


def families(targets: Targets) -> tuple[str, ...]:
    """Return the delegated families, the most trusted first."""
    return tuple(role.name.removeprefix(FAMILY_ROLE) for role in _delegations(targets))


def describe(snapshot: Snapshot, role: str) -> MetaFile:
    """Return how a snapshot names a role's file.

    Raises:
        TrustError: It does not name it.
    """
    meta = snapshot.meta.get(f"{role}.json")
    if meta is None:
        raise TrustError(f"snapshot.json does not name {role}.json.")
    return meta


def delegation(family: str, keyids: list[str], threshold: int) -> DelegatedRole:
    """Return how top-level targets delegate a family."""
    paths = [f"{family}/*"]
    return DelegatedRole(FAMILY_ROLE + family, keyids, threshold, terminating=True, paths=paths)


def is_family(name: str) -> bool:
    """Say whether a family can be called that."""
    return _FAMILY.fullmatch(name) is not None


def _signed_by_itself(metadata: Metadata[Root]) -> Root:
    root = metadata.signed
    check_signed(metadata, root, "root", "root.json")
    published(root)
    if root.consistent_snapshot is not True:
        raise TrustError("root.json is of a repository without snapshots.", hint=FOREIGN)
    return root


def _delegations(targets: Targets) -> list[DelegatedRole]:
    roles = targets.delegations.roles if targets.delegations is not None else None
    return list((roles or {}).values())


def _check_delegation(role: DelegatedRole) -> None:
    family = str(role.name).removeprefix(FAMILY_ROLE)
    if not is_family(family) or role != delegation(family, role.keyids, role.threshold):
        raise TrustError(f"targets.json delegates '{family[:80]}' oddly.", hint=FOREIGN)


def _check_not_older(name: str, version: int, least: int) -> None:
    if version < least:
        raise TrustError(
            f"{name} is version {version}; this box has seen version {least} of it.",
            hint="The source is out of date, or somebody plays back old files.",
        )
