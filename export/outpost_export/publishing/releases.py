"""Offers of a repository: released, rolled out, halted.

The release counter of a name goes up with every release, over all targets; a box never goes
below what it has had. So going back, for everybody, is publishing the old bundle again.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from outpost_runtime.errors import NotFoundError, TrustError
from outpost_runtime.update.metadata import TargetFile, Targets
from outpost_runtime.update.offer import Offer, Rollout, encode_offer, parse_offer, release_path
from outpost_runtime.update.offers import SignedOffer, choice, verified_release

from outpost_export.errors import PublishError
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signers import Signers
from outpost_export.publishing.signing import Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutChange:
    """What shall be different in a roll-out; None leaves it as it is.

    Attributes:
        rings: Rings that it is for; empty for every ring.
        percent: Share of their devices; 0 halts.
        not_before: Seconds since 1970.
        not_after: The same.
    """

    rings: tuple[str, ...] | None = None
    percent: int | None = None
    not_before: int | None = None
    not_after: int | None = None

    def applied(self, rollout: Rollout) -> Rollout:
        """Return a roll-out with the changes.

        Raises:
            PublishError: It would end before it begins.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        said = {name: value for name, value in fields.items() if value is not None}
        changed = dataclasses.replace(rollout, **said)
        begin, end = changed.not_before, changed.not_after
        moves = "not_before" in said or "not_after" in said  # a halt is never refused
        if moves and begin is not None and end is not None and begin > end:
            raise PublishError(
                "The roll-out would end before it begins.",
                hint="Give --not-before and --not-after; what is not given stays as it was.",
            )
        return changed


def add_release(
    repository: Repository, family: str, offer: Offer, release: bytes, signers: Signers, now: float
) -> SignedOffer:
    """Publish a release: store it, and sign an offer with the name's next release counter.

    Its blocks, deltas and wrapped keys must be in the repository before.

    Args:
        repository: The repository.
        family: Whose keys sign it.
        offer: What it is and for whom; its ``release`` is not looked at.
        release: The encoded release.
        signers: Who signs: the family's key, and the online key.
        now: Seconds since 1970.

    Returns:
        The offer as it was signed.

    Raises:
        PublishError: There is no such family, the name is another family's, no box could read the
            offer, or a key is missing.
        TrustError: The release is not of the bundle that the offer names.
    """
    with repository.editing(signers, now) as draft:
        targets = draft.family(family)
        numbered = dataclasses.replace(offer, release=_next_counter(draft, family, offer.name))
        signed = SignedOffer(
            family=family,
            path=release_path(family, numbered),
            offer=numbered,
            length=len(release),
            sha256=hashlib.sha256(release).hexdigest(),
        )
        verified_release(signed, release)
        _offer(targets, signed)
        repository.add_file(signed.stored_path, release)
    return signed


def set_rollout(
    repository: Repository,
    name: str,
    change: RolloutChange,
    signers: Signers,
    now: float,
    *,
    release: int | None = None,
) -> list[SignedOffer]:
    """Change for whom a release is, and when.

    Args:
        repository: The repository.
        name: The model's name.
        change: What shall be different.
        signers: Who signs: the family's key, and the online key.
        now: Seconds since 1970.
        release: Its release counter; None for all targets of the newest version.

    Returns:
        The offers as they were signed.

    Raises:
        NotFoundError: There is no such name or release.
        PublishError: No box could read the offer, it ends before it begins, or a key is missing.
    """
    with repository.editing(signers, now) as draft:
        changed = []
        for signed in _selected(draft, name, release):
            rollout = change.applied(signed.offer.rollout)
            offer = dataclasses.replace(signed.offer, rollout=rollout)
            changed.append(dataclasses.replace(signed, offer=offer))
            _offer(draft.family(signed.family), changed[-1])
    return changed


def offers(draft: Draft) -> tuple[SignedOffer, ...]:
    """Return every offer of a repository."""
    return choice(dict(draft.families), {}).offers


def _selected(draft: Draft, name: str, release: int | None) -> Iterator[SignedOffer]:
    named = [signed for signed in offers(draft) if signed.offer.name == name]
    if not named:
        raise NotFoundError(f"This repository offers no '{name}'.")
    newest = max(named, key=lambda signed: signed.offer.release)
    counters = {signed.offer.release for signed in named}
    if release is not None and release not in counters:
        raise NotFoundError(
            f"'{name}' has no release {release}; the newest is {newest.offer.release}."
        )
    for signed in named:
        same_version = signed.offer.version == newest.offer.version
        if signed.offer.release == release or (release is None and same_version):
            yield signed


def _next_counter(draft: Draft, family: str, name: str) -> int:
    named = [signed for signed in offers(draft) if signed.offer.name == name]
    for signed in named:
        if signed.family != family:
            raise PublishError(
                f"'{name}' belongs to the family '{signed.family}'.",
                hint="Boxes take a name from one family only; publish it there, or rename it.",
            )
    return max((signed.offer.release for signed in named), default=0) + 1


def _offer(targets: Targets, signed: SignedOffer) -> None:
    custom = encode_offer(signed.offer)
    try:
        parse_offer(custom)
    except TrustError as error:  # of the same build: it is what was asked for
        raise PublishError(f"No box could read this offer: {error.__cause__}") from error
    target = TargetFile(signed.length, {"sha256": signed.sha256}, signed.path)
    target.unrecognized_fields["custom"] = custom
    targets.targets[signed.path] = target
