"""Offers: what verified metadata gives a box to choose from, and what it refuses of it.

Pure. Rules:

1. An offer stands under the path that its name, release counter and target make, and comes
   with the length and SHA-256 of its release.
2. A bad offer, or a bad family, costs nobody else's offers: it is refused alone.
3. A name belongs to the family that a box had it from, for as long as that family is
   delegated; before that, to the first in the order of delegation that offers it. So one
   family's keys never replace another's models.
4. The release counter of a name never goes down, whatever clocks and versions say. Where nothing
   else is offered of a name, that is said.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from outpost_runtime.errors import TrustError
from outpost_runtime.update.metadata import (
    FOREIGN,
    TargetFile,
    Targets,
    check_bytes,
    is_digest,
    whole,
)
from outpost_runtime.update.offer import Offer, parse_offer, release_path
from outpost_runtime.update.release import MAX_RELEASE_BYTES, Release, parse_release
from outpost_runtime.update.seen import check_fresh

_OTHERS = "Have it published for this box; nothing was changed."


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedOffer:
    """An offer that a family's keys have signed.

    Attributes:
        path: TUF target path of the release.
        length: Bytes of the release.
        sha256: Its digest.
    """

    family: str
    path: str
    offer: Offer
    length: int
    sha256: str

    @property
    def stored_path(self) -> str:
        """Where the release lies in a repository with consistent snapshots."""
        folder, _, name = self.path.rpartition("/")
        return f"targets/{folder}/{self.sha256}.{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The newest release of a name that a box accepted for install, and whose it was."""

    family: str
    release: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Something in the metadata that this box does not use, and why."""

    what: str
    reason: TrustError


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a box may choose from, and what was refused."""

    offers: tuple[SignedOffer, ...]
    refused: tuple[Refusal, ...]


def choice(
    signed: Mapping[str, Targets | TrustError],
    accepted: Mapping[str, Accepted],
    time: float | None = None,
) -> Choice:
    """Read the offers of all families.

    Args:
        signed: Every delegated family's verified targets, or why they are refused; the most
            trusted family first.
        accepted: By name, what this box accepted before. Older releases are left out.
        time: Families that have expired then (seconds since 1970) are refused; None to show
            what is there without installing it.
    """
    offers, refused, older = list[SignedOffer](), list[Refusal](), dict[str, SignedOffer]()
    owners = {name: one.family for name, one in accepted.items() if one.family in signed}
    for family, targets in signed.items():
        stale = _stale(family, targets, time)
        refused += stale
        for found in _read(family, targets):
            if isinstance(found, Refusal):
                refused.append(found)
            elif (owner := owners.setdefault(found.offer.name, family)) != family:
                refused.append(Refusal(what=found.path, reason=_taken(found, owner)))
            elif found.offer.release < _least(found, accepted):
                older[found.offer.name] = found
            elif not stale:
                offers.append(found)
    for name in sorted(older.keys() - {found.offer.name for found in offers}):
        refused.append(Refusal(what=name, reason=_too_old(older[name].offer, accepted[name])))
    return Choice(offers=tuple(offers), refused=tuple(refused))


def check_counter(signed: SignedOffer, accepted: Mapping[str, Accepted]) -> None:
    """Refuse a release that is older than one that this box accepted.

    Raises:
        TrustError: It is.
    """
    offer, least = signed.offer, _least(signed, accepted)
    if offer.release < least:
        raise _too_old(offer, accepted[offer.name])


def verified_release(signed: SignedOffer, data: bytes) -> Release:
    """Read the bytes of a release that an offer names.

    Raises:
        TrustError: They are others, or of another bundle than the offer says.
    """
    check_bytes(data, signed.length, signed.sha256, signed.path)
    release, offer = parse_release(data), signed.offer
    told = (offer.name, offer.version, offer.target, offer.bundle)
    if told != (release.name, release.version, release.target, release.bundle):
        raise TrustError(
            f"{signed.path} is of another bundle than its offer says.", hint="Publish it again."
        )
    return release


def _least(signed: SignedOffer, accepted: Mapping[str, Accepted]) -> int:
    before = accepted.get(signed.offer.name)
    return before.release if before is not None and before.family == signed.family else 0


def _stale(family: str, targets: Targets | TrustError, time: float | None) -> list[Refusal]:
    if time is None or isinstance(targets, TrustError):
        return []
    try:
        check_fresh(targets, f"The family '{family}'", time)
    except TrustError as error:
        return [Refusal(what=family, reason=error)]
    return []


def _read(family: str, targets: Targets | TrustError) -> Iterator[SignedOffer | Refusal]:
    if isinstance(targets, TrustError):
        yield Refusal(what=family, reason=targets)
        return
    for path, target in targets.targets.items():
        try:
            yield _signed_offer(family, path, target)
        except TrustError as error:
            yield Refusal(what=path[:200], reason=error)


def _signed_offer(family: str, path: str, target: TargetFile) -> SignedOffer:
    offer = parse_offer(target.custom)
    digest = target.hashes.get("sha256", "")
    if path != release_path(family, offer):
        raise TrustError(f"{path[:200]} is not where such an offer stands.", hint=FOREIGN)
    if not whole(target.length) or target.length > MAX_RELEASE_BYTES or not is_digest(digest):
        raise TrustError(f"{path} has no usable length and SHA-256.", hint=FOREIGN)
    return SignedOffer(family=family, path=path, offer=offer, length=target.length, sha256=digest)


def _too_old(offer: Offer, accepted: Accepted) -> TrustError:
    return TrustError(
        f"Release {offer.release} of '{offer.name}' is older than release {accepted.release}, "
        "which this box has accepted.",
        hint="To go back for all boxes, publish the old bundle again; it gets a new number.",
    )


def _taken(signed: SignedOffer, owner: str) -> TrustError:
    return TrustError(
        f"'{signed.offer.name}' belongs to the family '{owner}', not to '{signed.family}'.",
        hint="Publish it under another name.",
    )
