"""Who may sign what: a repository's keys made, delegated, replaced.

The roles of a repository, as people name them: ``root``, ``targets``, ``online`` (snapshot and
timestamp, which one key signs) and ``family-<name>``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from outpost_runtime.update.metadata import Key, Root, Targets
from outpost_runtime.update.trust import FAMILY_ROLE, delegation, is_family

from outpost_export.errors import PublishError
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signers import Signers
from outpost_export.publishing.signing import Draft, unsigned_family

ONLINE = "online"
_ONLINE_ROLES = ("snapshot", "timestamp")

MakeKey = Callable[[], Key]


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstKeys:
    """Public keys of a new repository."""

    root: Sequence[Key]
    root_threshold: int
    targets: Key
    online: Key
    families: dict[str, Key]


def check_new(
    repository: Repository, root_keys: int, root_threshold: int, families: Iterable[str]
) -> None:
    """Refuse what no repository can be made of, before keys are.

    Raises:
        PublishError: There is one already, or the threshold or a family's name is impossible.
    """
    if repository.exists():
        raise PublishError(f"{repository.folder} is a repository already.")
    if not 1 <= root_threshold <= root_keys:
        raise PublishError(f"Of {root_keys} root keys, {root_threshold} cannot sign.")
    for family in families:
        _check_name(family)


def create(repository: Repository, keys: FirstKeys, signers: Signers, now: float) -> None:
    """Make a repository with its first root, and families without offers.

    Raises:
        PublishError: There is one already, the threshold cannot be kept, or a key is missing.
    """
    check_new(repository, len(keys.root), keys.root_threshold, keys.families)
    with repository.creating(signers, now) as draft:
        for key in keys.root:
            draft.root.add_key(key, "root")
        draft.root.roles["root"].threshold = keys.root_threshold
        draft.root.add_key(keys.targets, "targets")
        for role in _ONLINE_ROLES:
            draft.root.add_key(keys.online, role)
        for family, key in keys.families.items():
            _delegate(draft, family, key)
            draft.changed.add(FAMILY_ROLE + family)


def add_family(
    repository: Repository, family: str, new: MakeKey, signers: Signers, now: float
) -> Key:
    """Delegate one more family to a key, which may be elsewhere: its owner's first release signs.

    Raises:
        PublishError: There is or was one of that name, or a key is missing.
    """
    with repository.editing(signers, now) as draft:
        if family in draft.families:
            raise PublishError(f"There is a family '{family}' already.")
        if f"{FAMILY_ROLE}{family}.json" in draft.snapshot.meta:
            raise PublishError(
                f"There was a family '{family}', and boxes hold its release counters.",
                hint="Take another name: counters begin anew there.",
            )
        _check_name(family)
        key = new()
        _delegate(draft, family, key)
        if signers.signer(key) is not None:
            draft.changed.add(FAMILY_ROLE + family)
    return key


def remove_family(repository: Repository, family: str, signers: Signers, now: float) -> None:
    """Delegate a family no more: boxes are offered nothing of it, and its names become free.

    Raises:
        PublishError: There is none of that name, or a key is missing.
    """
    role = FAMILY_ROLE + family
    with repository.editing(signers, now) as draft:
        demand = _delegator(draft, role).get_delegated_role(role)
        for keyid in list(demand.keyids):
            draft.targets.revoke_key(keyid, role)
        del draft.families[family], draft.delegated[role]
        draft.changed.add("targets")


def replace_key(
    repository: Repository, role: str, old: str | None, new: MakeKey, signers: Signers, now: float
) -> Key:
    """Trust a new key for a role, and an old one no more.

    Args:
        repository: The repository.
        role: ``root``, ``targets``, ``online`` or ``family-<name>``.
        old: Beginning of the id of the key that goes; None if the role has but one.
        new: Gives the public key that comes; asked for when all else is clear.
        signers: Who signs: the new key, and for a new root as many old root keys as it says.
        now: Seconds since 1970.

    Raises:
        PublishError: There is no such role or key, or a key is missing.
    """
    with repository.editing(signers, now) as draft:
        names = _tuf_roles(role)
        goes = {name: _goes(_delegator(draft, name), name, old) for name in names}
        key = new()
        for name, keyid in goes.items():
            _delegator(draft, name).revoke_key(keyid, name)
            _delegator(draft, name).add_key(key, name)
            draft.changed.add(name)
        draft.changed.add("targets" if role.startswith(FAMILY_ROLE) else "root")
    return key


def renew(repository: Repository, role: str, signers: Signers, now: float) -> None:
    """Sign a role's metadata again with the same keys, before it expires.

    Raises:
        PublishError: There is no such role, or a key is missing.
    """
    with repository.editing(signers, now) as draft:
        for name in _tuf_roles(role):
            _delegator(draft, name)
            draft.changed.add(name)


def check_role(role: str) -> None:
    """Refuse what cannot be the name of a role of any repository.

    Raises:
        PublishError: It cannot.
    """
    _tuf_roles(role)
    if role.startswith(FAMILY_ROLE):
        _check_name(role.removeprefix(FAMILY_ROLE))


def _delegate(draft: Draft, family: str, key: Key) -> None:
    role = FAMILY_ROLE + family
    draft.delegated[role] = delegation(family, [], 1)
    draft.targets.add_key(key, role)
    draft.families[family] = unsigned_family()
    draft.changed.add("targets")


def _check_name(family: str) -> None:
    if not is_family(family):
        raise PublishError(
            f"A family cannot be called '{family}'.",
            hint="Use lower-case letters, digits, '.', '_' and '-'.",
        )


def _tuf_roles(role: str) -> Iterable[str]:
    if role == ONLINE:
        return _ONLINE_ROLES
    if role in ("root", "targets") or role.startswith(FAMILY_ROLE):
        return (role,)
    raise PublishError(
        f"There is no role '{role}'.", hint="Roles are root, targets, online and family-NAME."
    )


def _delegator(draft: Draft, role: str) -> Root | Targets:
    if not role.startswith(FAMILY_ROLE):
        return draft.root
    if role not in draft.delegated:
        raise PublishError(f"There is no family '{role.removeprefix(FAMILY_ROLE)}'.")
    return draft.targets


def _goes(delegator: Root | Targets, role: str, old: str | None) -> str:
    keyids = delegator.get_delegated_role(role).keyids
    matching = [keyid for keyid in keyids if old is None or keyid.startswith(old)]
    if len(matching) != 1:
        raise PublishError(
            f"{role} has {len(matching)} keys that '{old or ''}' may mean, not one.",
            hint="Say which key goes with --replace; 'outpost-export keys show' lists them.",
        )
    return matching[0]
