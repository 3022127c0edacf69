"""What a source offers to this box, and the releases of it: steps 1 and 2 of an update.

A source whose metadata or releases may not be used is left: a mirror near by may lie.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from outpost_runtime.errors import FetchError, NotFoundError, TrustError
from outpost_runtime.update.box import Box
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.offers import SignedOffer
from outpost_runtime.update.release import Release
from outpost_runtime.update.rollout import Choice
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.stock import whole_release
from outpost_runtime.update.trust_store import Refreshed

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """An offer for this box, and what it is an offer of."""

    signed: SignedOffer
    release: Release


def refresh(box: Box, sources: Sources, now: float, *, from_stick: bool) -> Refreshed:
    """Refresh from the first source whose metadata may be used.

    Raises:
        TrustError, FetchError: There is none; this is the last one's failure.
    """
    while True:
        try:
            return box.trust.refresh(sources.fetchers[0], now, from_stick=from_stick)
        except (TrustError, FetchError) as error:
            if not sources.blame(sources.fetchers[0]):
                raise
            _LOG.warning("a source is not used: %s", error)


def fetch_releases(
    box: Box,
    sources: Sources,
    choices: Sequence[Choice],
    signed: dict[Offer, SignedOffer],
    reasons: dict[str, str],
) -> dict[str, Chosen]:
    """Fetch releases and their keys; a name that fails is put into ``reasons``, and alone.

    Raises:
        OutpostError: Every one failed; this is the first failure.
    """
    chosen, failures = {}, []
    for choice in choices:
        if choice.offer is None:
            continue
        one = signed[choice.offer]
        try:
            chosen[choice.name] = Chosen(signed=one, release=_release(box, sources, one))
        except (TrustError, NotFoundError, FetchError) as error:
            reasons[choice.name] = str(error)
            failures.append(error)
    if failures and not chosen:
        raise failures[0]
    return chosen


def _release(box: Box, sources: Sources, one: SignedOffer) -> Release:
    """Return a release whose key is here, from the first source whose files of it may be used."""
    while True:
        fetcher = sources.fetchers[0]
        try:
            here = whole_release(box, one.offer.bundle)
            release = here or box.trust.release(fetcher, one)
            _check_same(one, release)
            box.keys.obtain(release.key, fetcher)
        except TrustError as error:
            if not sources.blame(fetcher):
                sources.take_back()
                raise
            _LOG.warning("a source is not used: %s", error)
        else:
            return release


def _check_same(signed: SignedOffer, release: Release) -> None:
    offer = signed.offer
    said = offer.name, offer.version, offer.target, offer.bundle
    if said != (release.name, release.version, release.target, release.bundle):
        raise TrustError(
            f"The release {signed.path} is not what its offer says.",
            hint="Have it published again; nothing was changed.",
        )
