"""From a draft of a repository's metadata to signed files.

Pure, but for who signs. Nothing is written here; what is missing to sign is found before the
first file is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from outpost_runtime.errors import TrustError
from outpost_runtime.update.generation import length_of, read_generation
from outpost_runtime.update.metadata import (
    PUBLISHED,
    DelegatedRole,
    Medium,
    Metadata,
    MetaFile,
    Root,
    SignedT,
    Snapshot,
    Targets,
    Timestamp,
    published,
)
from outpost_runtime.update.seen import online_keys
from outpost_runtime.update.trust import (
    FAMILY_ROLE,
    MAX_ROOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    next_root,
    read_root,
    read_timestamp,
)

from outpost_export.errors import PublishError
from outpost_export.publishing.signers import Signers

DAY = 86_400

LONGEST_PAUSE = 400 * DAY
"""Seconds since the last publication after which a clock is doubted: a time that was signed
cannot be taken back without a new online key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetimes:
    """Seconds from signing to expiry.

    A timestamp's is how long a thief of the network can hide news from boxes, and how long a
    publisher may be away. The rest only has to be longer: what a box runs never expires.
    """

    root: int = 730 * DAY
    targets: int = 400 * DAY
    family: int = 400 * DAY
    snapshot: int = 400 * DAY
    timestamp: int = 14 * DAY
    stick: int = 180 * DAY


@dataclass(kw_only=True, slots=True)
class Draft:
    """A repository's metadata while it is edited.

    Attributes:
        before: The root that is published, or None where nothing is yet.
        changed: Roles whose next version shall be signed: a top-level one or a family's; what
            follows from them is signed by itself.
        published: When the repository was signed last, in seconds since 1970.
    """

    root: Root
    targets: Targets
    families: dict[str, Targets]
    snapshot: Snapshot
    timestamps: dict[Medium, Timestamp]
    before: Root | None = None
    changed: set[str] = field(default_factory=set)
    published: int = 0

    @property
    def delegated(self) -> dict[str, DelegatedRole]:
        """The delegated roles by name, the most trusted first; may be changed."""
        delegations = self.targets.delegations
        if delegations is None or delegations.roles is None:
            raise AssertionError("top-level targets of ours delegate by name")
        return delegations.roles

    def check_family(self, name: str) -> None:
        """Refuse a family that there is not.

        Raises:
            PublishError: It is not delegated.
        """
        if name not in self.families:
            known = ", ".join(self.families) or "none"
            raise PublishError(
                f"This repository has no family '{name}'; it has {known}.",
                hint="Make it with 'outpost-export keys family'.",
            )

    def family(self, name: str) -> Targets:
        """Return a family's targets, to be changed and signed.

        Raises:
            PublishError: It is not delegated.
        """
        self.check_family(name)
        self.changed.add(FAMILY_ROLE + name)
        return self.families[name]


def unsigned_family() -> Targets:
    """Return a family's targets before its owner signs them first."""
    targets = Targets()
    targets.version = 0
    return targets


@dataclass(frozen=True, kw_only=True, slots=True)
class _Desk:
    """Who signs, and at what time."""

    draft: Draft
    signers: Signers
    now: int
    lifetimes: Lifetimes

    def signed(self, role: str, signed: SignedT, lifetime: int) -> bytes:
        """Sign with all keys of a role that are here, at least its threshold."""
        signed.expires = datetime.fromtimestamp(self.now + lifetime, UTC)
        metadata, delegator = Metadata[SignedT](signed), self._delegator(role)
        self._sign(metadata, role, delegator)
        before = self.draft.before
        if before is not None and not role.startswith(FAMILY_ROLE):
            # Boxes that have not seen the new root go by the old one's keys: while a key is
            # replaced, both sign. Only a new root has to have the old signatures.
            self._sign(metadata, role, before, needed=role == "root")
        return metadata.to_bytes()

    def _sign(
        self,
        metadata: Metadata[SignedT],
        role: str,
        delegator: Root | Targets,
        *,
        needed: bool = True,
    ) -> None:
        demand = delegator.get_delegated_role(role)
        for keyid in demand.keyids:
            signer = self.signers.signer(delegator.get_key(keyid))
            if signer is not None and keyid not in metadata.signatures:
                metadata.sign(signer, append=True)
        found = len(metadata.signatures.keys() & set(demand.keyids))
        if needed and found < demand.threshold:
            raise PublishError(
                f"{role} must be signed by {demand.threshold} of its keys; {found} are here.",
                hint="Name every folder with --keys; 'outpost-export keys show' lists them.",
            )

    def _delegator(self, role: str) -> Root | Targets:
        return self.draft.targets if role.startswith(FAMILY_ROLE) else self.draft.root


def signed_files(
    draft: Draft,
    signers: Signers,
    now: float,
    lifetimes: Lifetimes,
    longest_pause: float = LONGEST_PAUSE,
) -> list[tuple[str, bytes]]:
    """Sign what has changed, and what follows from it.

    Args:
        now: Seconds since 1970.
        longest_pause: Seconds since the last publication after which ``now`` is not believed.

    Returns:
        Names and contents, in the order in which a reader may come to see them: what is named
        before what names it, and the root last, since the timestamps are good for both roots.

    Raises:
        PublishError: A key is missing, or the clock is behind what was published, or far ahead.
        TrustError: A box would refuse the result; nothing of it may be written.
    """
    _check_clock(draft, now, longest_pause)
    desk = _Desk(draft=draft, signers=signers, now=int(now), lifetimes=lifetimes)
    files = _signed_targets(desk)
    if files or "timestamp" in draft.changed:
        files += _signed_timestamps(desk)
    if "root" in draft.changed:
        files += _signed_root(desk)
    draft.published = desk.now
    return files


def _check_clock(draft: Draft, now: float, longest_pause: float) -> None:
    before, last = draft.before, draft.published
    if before is not None and not online_keys(before) <= online_keys(draft.root):
        last = published(before)  # what a dropped online key vouched for ends, its times too
    said = f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC"
    if now < last:
        raise PublishError(
            f"This machine's clock is behind: the repository was signed at {said}.",
            hint="Set the clock right; boxes would go on by the later time. If it was signed with "
            "a clock that ran ahead, replace the key: outpost-export keys rotate online",
        )
    if before is not None and now > last + longest_pause:
        raise PublishError(
            f"This machine's clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d}, and the "
            f"repository was signed last at {said}.",
            hint="Set the clock right, or say --clock-is-right: boxes never go back behind it.",
        )


def check_readable(draft: Draft, get: Callable[[str], bytes]) -> None:
    """Read signed files as a box would that has the root before.

    Args:
        draft: The draft that they were signed from.
        get: Gives a file by its name, new or unchanged.

    Raises:
        TrustError: A box would refuse them.
    """
    root = draft.before
    if root is None:
        root = read_root(get("1.root.json"))
    elif root.version != draft.root.version:
        root = next_root(root, get(f"{draft.root.version}.root.json"))
    _check_size(get(f"{root.version}.root.json"), MAX_ROOT_BYTES)
    for medium in Medium:
        data = get(f"{medium.value}.json")
        _check_size(data, MAX_TIMESTAMP_BYTES)
        timestamp = read_timestamp(root, data, medium)

    def get_named(role: str, meta: MetaFile) -> bytes:
        length_of(role, meta)
        return get(f"{meta.version}.{role}.json")

    found = read_generation(root, timestamp, get_named)
    for family, targets in found.families.items():
        waiting = draft.families[family].version == 0  # its owner has not signed yet
        if isinstance(targets, TrustError) and not waiting:
            raise targets


def _check_size(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise TrustError(f"Metadata of {len(data):,} bytes is too large: {limit:,} are allowed.")


def _signed_targets(desk: _Desk) -> list[tuple[str, bytes]]:
    draft, files = desk.draft, list[tuple[str, bytes]]()
    for family, targets in draft.families.items():
        if FAMILY_ROLE + family in draft.changed:
            files += _one(desk, FAMILY_ROLE + family, targets, desk.lifetimes.family)
    if "targets" in draft.changed:
        files += _one(desk, "targets", draft.targets, desk.lifetimes.targets)
    if files or "snapshot" in draft.changed or _is_short(desk):
        draft.snapshot.version += 1
        name = f"{draft.snapshot.version}.snapshot.json"
        data = desk.signed("snapshot", draft.snapshot, desk.lifetimes.snapshot)
        meta = MetaFile.from_data(draft.snapshot.version, data, ["sha256"])
        for timestamp in draft.timestamps.values():
            timestamp.snapshot_meta = meta
        files.append((name, data))
    return files


def _is_short(desk: _Desk) -> bool:
    # A stick has to live as long as it says.
    rest = desk.draft.snapshot.expires.timestamp() - desk.now
    return "timestamp" in desk.draft.changed and rest < desk.lifetimes.stick


def _one(desk: _Desk, role: str, targets: Targets, lifetime: int) -> list[tuple[str, bytes]]:
    targets.version += 1
    data = desk.signed(role, targets, lifetime)
    desk.draft.snapshot.meta[f"{role}.json"] = MetaFile.from_data(targets.version, data, ["sha256"])
    return [(f"{targets.version}.{role}.json", data)]


def _signed_timestamps(desk: _Desk) -> list[tuple[str, bytes]]:
    files, lifetimes = [], desk.lifetimes
    for medium, lifetime in (
        (Medium.STICK, lifetimes.stick),
        (Medium.NETWORK, lifetimes.timestamp),
    ):
        timestamp = desk.draft.timestamps[medium]
        timestamp.version += 1
        timestamp.unrecognized_fields[PUBLISHED] = desk.now
        files.append((f"{medium.value}.json", desk.signed("timestamp", timestamp, lifetime)))
    return files


def _signed_root(desk: _Desk) -> list[tuple[str, bytes]]:
    root = desk.draft.root
    root.version += 1
    root.unrecognized_fields[PUBLISHED] = desk.now
    return [(f"{root.version}.root.json", desk.signed("root", root, desk.lifetimes.root))]
