"""One update, from a source's signed offers to candidates that wait for the gate.

1. Refresh the signed metadata; what it says is all that is believed.
2. Choose what is for this box, and fetch the releases. A bundle that is here whole keeps the
   release that it came with, whatever blocks it was published as again: only its counter moves.
3. Let wait what cannot come without something else.
4. Plan: what to fetch, what is here, what it takes of the disk; refuse what does not fit.
5. Fetch blocks and content keys; whatever stops this, the next time goes on from there.
6. Check every file against its manifest; what the disk has damaged is fetched again.
7. Record the release counters, and make the bundles candidates, all at once.

Steps 1 and 2 are in :mod:`choosing`, 4 to 7 in :mod:`bringing`. Where these fail for all
together, each base with its adapters, and each other name, goes through them on its own: what
keeps one from coming keeps no other.

Nothing that serves is touched. What fails leaves blocks that the next update finds.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from outpost_runtime.errors import BusyError, StoreError
from outpost_runtime.update.box import Box
from outpost_runtime.update.bringing import Wishes, bring, check_files, fetch
from outpost_runtime.update.choosing import fetch_releases, refresh
from outpost_runtime.update.holding import held_back
from outpost_runtime.update.planning import Plan
from outpost_runtime.update.probation import bases
from outpost_runtime.update.rollout import choose
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.stock import as_here, kept_releases, plan_for, throw_away_damaged
from outpost_runtime.update.system import wanting_system


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
        refreshed = refresh(box, sources, now, from_stick=wishes.from_stick)  # 1
        time = int(box.trust.time(now))
        signed = {one.offer: one for one in refreshed.offers}
        slots = box.store.slots()
        here = as_here(box, slots)
        wanting = wanting_system(box.device.as_device(), box.running)
        choices = choose(signed, wanting, here, time)  # 2
        reasons = {c.name: c.reason for c in choices if c.offer is None}
        reasons |= {refusal.what: refusal.reason.message for refusal in refreshed.refused}
        chosen = fetch_releases(box, sources, choices, signed, reasons)
        releases = {name: each.release for name, each in chosen.items()}
        held = held_back(releases, slots, bases(box.store, slots))  # 3
        reasons |= {name: f"waits: {reason}" for name, reason in held.items()}
        going = {name: each for name, each in chosen.items() if name not in held}
        if not going:
            return Outcome(reasons=reasons)
        came, plan = bring(box, sources, going, wishes, int(now), reasons)  # 4 to 7
    if wishes.dry_run:
        return Outcome(reasons=reasons, plan=plan)
    candidates = {name: each.release.bundle for name, each in came.items()}
    return Outcome(reasons=reasons, candidates=candidates, plan=plan)


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
        fetch(box, sources, releases, plan, wishes)
        check_files(box, releases)
    return plan


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
