"""What a repository's metadata says of itself: roles, keys, versions, expiry."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from outpost_runtime.update.metadata import Root, Signed, Targets
from outpost_runtime.update.trust import FAMILY_ROLE

from outpost_export.publishing.signing import Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleState:
    """One role as it is published.

    Attributes:
        role: Its name in TUF; ``stick`` for the timestamp of sticks.
        version: Version of its metadata; 0 if its owner has not signed any yet.
        threshold: How many of its keys must sign.
        keyids: Ids of its keys.
        expires: When its metadata expires.
    """

    role: str
    version: int
    threshold: int
    keyids: tuple[str, ...]
    expires: datetime


def inventory(draft: Draft) -> Iterator[RoleState]:
    """Yield every role of a repository, root first."""
    yield _state("root", draft.root, draft.root)
    yield _state("targets", draft.root, draft.targets)
    for family, targets in draft.families.items():
        yield _state(FAMILY_ROLE + family, draft.targets, targets)
    yield _state("snapshot", draft.root, draft.snapshot)
    for medium, timestamp in draft.timestamps.items():
        state = _state("timestamp", draft.root, timestamp)
        yield dataclasses.replace(state, role=medium.value)


def _state(role: str, delegator: Root | Targets, signed: Signed) -> RoleState:
    demand = delegator.get_delegated_role(role)
    return RoleState(
        role=role,
        version=signed.version,
        threshold=demand.threshold,
        keyids=tuple(demand.keyids),
        expires=signed.expires,
    )
