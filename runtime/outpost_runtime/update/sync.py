"""One update, from a source's signed offers to candidates that wait for the gate.

1. Refresh the signed metadata; what it says is all that is believed.
2. Choose what is for this box, and fetch the releases. A bundle that is here whole keeps the
   release that it came with, whatever blocks it was published as again: only its counter moves.
3. Let wait what cannot come without something else.
4. Plan: what to fetch, what is here, what it takes of the disk; refuse what does not fit.
5. Fetch blocks and content keys; whatever stops this, the next time goes on from there.
6. Check every file against its manifest; what the disk has damaged is fetched again.
7. Record the release counters, and make the bundles candidates, all at once.

Where 4 to 7 fail for all together, each base with its adapters, and each other name, goes through
them on its own: what keeps one from coming keeps no other.

Nothing that serves is touched. What fails leaves blocks that the next update finds.
"""

import contextlib
import fcntl
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

from outpost_runtime.bundle import verify
from outpost_runtime.errors import (
    BusyError,
    FetchError,
    NotFoundError,
    OutpostError,
    StoreError,
    TrustError,
)
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.box import Box
from outpost_runtime.update.holding import groups, held_back
from outpost_runtime.update.making import make_block
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.offers import SignedOffer
from outpost_runtime.update.planning import Plan, joined
from outpost_runtime.update.probation import bases
from outpost_runtime.update.release import Block, Release
from outpost_runtime.update.rollout import Choice, choose
from outpost_runtime.update.slots import Candidate, Slot
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.stock import (
    as_here,
    kept_releases,
    plan_for,
    throw_away_damaged,
    whole_release,
)
from outpost_runtime.update.system import wanting_system
from outpost_runtime.update.transfer import transfer
from outpost_runtime.update.trust_store import Refreshed

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """How an update is done.

    Attributes:
        from_stick: The source was carried here.
        dry_run: Stop after the plan.
        most_bytes: Largest number of bytes to fetch; None is any.
        planned: Called with the plan before the first byte.
        progress: Called with the number of bytes of every piece that came.
        should_stop: Asked at every piece.
    """

    from_stick: bool = False
    dry_run: bool = False
    most_bytes: int | None = None
    planned: Callable[[Plan], None] = lambda _: None
    progress: Callable[[int], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an update came to.

    Attributes:
        reasons: Why names stay as they are, by name.
        candidates: Bundles that were made candidates, by name.
        plan: What was or would be fetched; None where nothing is to be done.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def staged(self) -> tuple[str, ...]:
        """Names that got a candidate."""
        return tuple(self.candidates)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    signed: SignedOffer
    release: Release


_Going = Mapping[str, _Chosen]


def sync(box: Box, sources: Sources, now: float, wishes: Wishes) -> Outcome:
    """Update from one source, or several behind one fetcher.

    Args:
        now: The box's clock, in seconds since 1970.

    Raises:
        TrustError: What the source has may not be used.
        FetchError: The source failed; what came is kept.
        StoreError: There is no room, or the store cannot be written.
        BusyError: Another update is under way in this store.
    """
    with _alone(box.store.folder):
        refreshed = _refreshed(box, sources, now, wishes)  # 1
        time = int(box.trust.time(now))
        signed = {one.offer: one for one in refreshed.offers}
        slots = box.store.slots()
        here = as_here(box, slots)
        wanting = wanting_system(box.device.as_device(), box.running)
        choices = choose(signed, wanting, here, time)  # 2
        reasons = {c.name: c.reason for c in choices if c.offer is None}
        reasons |= {refusal.what: refusal.reason.message for refusal in refreshed.refused}
        chosen = _releases(box, sources, choices, signed, reasons)
        releases = {name: each.release for name, each in chosen.items()}
        held = held_back(releases, slots, bases(box.store, slots))  # 3
        reasons |= {name: f"waits: {reason}" for name, reason in held.items()}
        going = {name: each for name, each in chosen.items() if name not in held}
        if not going:
            return Outcome(reasons=reasons)
        bring = partial(_bring, box, sources, now=int(now))
        parts = groups({name: each.release for name, each in going.items()})
        try:
            came, plan = going, bring(going, {}, wishes)
        except OutpostError as error:
            if len(parts) == 1 or wishes.should_stop():
                raise
            _LOG.warning("not all can come together: %s", error)
            came, plan = _one_by_one(parts, going, bring, sources, wishes, reasons)
    if wishes.dry_run:
        return Outcome(reasons=reasons, plan=plan)
    candidates = {name: each.release.bundle for name, each in came.items()}
    return Outcome(reasons=reasons, candidates=candidates, plan=plan)


def _one_by_one(
    parts: Sequence[tuple[str, ...]],
    going: _Going,
    bring: Callable[[_Going, _Going, Wishes], Plan],
    sources: Sources,
    wishes: Wishes,
    reasons: dict[str, str],
) -> tuple[dict[str, _Chosen], Plan]:
    """Bring each part on its own; one that fails is put into ``reasons``, and alone.

    Returns:
        What came, and what it took.

    Raises:
        OutpostError: Every one failed, or it was stopped; this is the first failure.
    """
    came, plans, failures = dict[str, _Chosen](), list[Plan](), list[OutpostError]()
    for names in parts:
        part = {name: going[name] for name in names}
        others = {name: each for name, each in going.items() if name not in came | part}
        spent = sum(plan.fetched for plan in plans)
        most = None if wishes.most_bytes is None else wishes.most_bytes - spent
        sources.take_back()
        try:
            plans.append(bring(part, others, replace(wishes, most_bytes=most)))
            came |= part
        except OutpostError as error:
            reasons |= dict.fromkeys(names, str(error))
            failures.append(error)
    if not plans or wishes.should_stop():
        raise failures[0]
    return came, joined(plans)


def _bring(
    box: Box, sources: Sources, going: _Going, others: _Going, wishes: Wishes, *, now: int
) -> Plan:
    """Do steps 4 to 7 for some names; what is here of the others stays."""
    coming = [each.release for each in going.values()]
    waiting = [each.release for each in others.values()]
    plan = plan_for(box, sources.fetchers[0], coming, waiting)  # 4
    wishes.planned(plan)
    if wishes.dry_run:
        return plan
    _check_cost(plan, wishes.most_bytes)
    box.store.releases.expect([release.bundle for release in (*coming, *waiting)])
    _fetch(box, sources, coming, plan, wishes)  # 5
    if throw_away_damaged(box, coming):  # 6
        again = plan_for(box, sources.fetchers[0], coming, waiting)
        _fetch(box, sources, coming, again, wishes)
    _check_files(box, coming)
    _stage(box, going, now)  # 7
    box.store.releases.expect([release.bundle for release in waiting])
    return plan


def _refreshed(box: Box, sources: Sources, now: float, wishes: Wishes) -> Refreshed:
    """Refresh from the first source whose metadata may be used: a mirror near by may lie."""
    while True:
        try:
            return box.trust.refresh(sources.fetchers[0], now, from_stick=wishes.from_stick)
        except (TrustError, FetchError) as error:
            if not sources.blame(sources.fetchers[0]):
                raise
            _LOG.warning("a source is not used: %s", error)


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


def repair(box: Box, sources: Sources, wishes: Wishes) -> Plan | None:
    """Read every block that this box needs, and fetch those again that its disk has damaged.

    Returns:
        What was fetched; None where everything is as it should be.

    Raises:
        FetchError, NotFoundError: The sources failed, or have the blocks no more.
        StoreError: There is no room, or the store cannot be written.
        BusyError: An update is under way in this store.
    """
    with _alone(box.store.folder):
        releases, _ = kept_releases(box)
        if not throw_away_damaged(box, releases):
            return None
        plan = plan_for(box, sources.fetchers[0], releases)
        wishes.planned(plan)
        box.store.releases.expect([release.bundle for release in releases])
        _fetch(box, sources, releases, plan, wishes)
        _check_files(box, releases)
    return plan


def _releases(
    box: Box,
    sources: Sources,
    choices: Sequence[Choice],
    signed: dict[Offer, SignedOffer],
    reasons: dict[str, str],
) -> dict[str, _Chosen]:
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
            chosen[choice.name] = _Chosen(signed=one, release=_release(box, sources, one))
        except (TrustError, NotFoundError, FetchError) as error:
            reasons[choice.name] = str(error)
            failures.append(error)
    if failures and not chosen:
        raise failures[0]
    return chosen


def _check_same(signed: SignedOffer, release: Release) -> None:
    offer = signed.offer
    said = offer.name, offer.version, offer.target, offer.bundle
    if said != (release.name, release.version, release.target, release.bundle):
        raise TrustError(
            f"The release {signed.path} is not what its offer says.",
            hint="Have it published again; nothing was changed.",
        )


def _check_cost(plan: Plan, most: int | None) -> None:
    if most is not None and plan.fetched > most:
        raise FetchError(
            f"The update is {plan.fetched:,} bytes, and on a metered link {most:,} may be fetched.",
            hint="It comes when the link costs nothing, or with 'outpost sync' by hand.",
        )


def _fetch(
    box: Box, sources: Sources, releases: Sequence[Release], plan: Plan, wishes: Wishes
) -> None:
    for release in releases:
        box.store.releases.write(release)
    ring = box.keys
    keys = {r.key: ring.obtain(r.key, sources.fetchers[0]) for r in releases}
    by_block = {block.id: keys[r.key] for r in releases for block in r.blocks()}
    stop = threading.Event()

    def make(delta: bytes, source: bytes, block: Block) -> bytes:
        return make_block(delta, source, block, by_block[block.id])

    def progress(count: int) -> None:
        wishes.progress(count)
        if wishes.should_stop():
            stop.set()

    done = transfer(
        plan,
        box.store.blocks,
        sources.fetchers,
        make,
        stop=stop,
        blame=sources.blame,
        progress=progress,
    )
    if not done.finished:
        raise FetchError("The update was stopped.", hint="The next one goes on from here.")


def _check_files(box: Box, releases: Sequence[Release]) -> None:
    for release in releases:
        verify(box.store.bundle(release.bundle))


def _stage(box: Box, going: _Going, now: int) -> None:
    for each in going.values():
        box.trust.accept(each.signed)

    def decide(slots: dict[str, Slot]) -> Change | None:
        changes = []
        for name, each in going.items():
            base = each.release.base
            candidate = Candidate(
                bundle=each.release.bundle,
                release=each.signed.offer.release,
                with_base=None if base is None else base.bundle,
            )
            changes.append(activation.stage(name, slots.get(name, Slot()), candidate, now))
        return activation.together(changes)

    box.store.change(decide)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with (folder / ".sync").open("w") as lock:
            _lock(lock)
            yield
    except OSError as error:  # of this file, of releases, of folders: all are the disk's
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}.",
            hint="Free some space; what came is kept, and the next update goes on from there.",
        ) from error


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BusyError(
            "Another update is under way here.", hint="Wait for it to end, then try again."
        ) from None
