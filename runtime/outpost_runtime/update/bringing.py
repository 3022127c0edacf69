"""From chosen releases to candidates that wait for the gate: steps 4 to 7 of an update."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from outpost_runtime.bundle import verify
from outpost_runtime.errors import FetchError, OutpostError
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.box import Box
from outpost_runtime.update.choosing import Chosen
from outpost_runtime.update.holding import groups
from outpost_runtime.update.making import make_block
from outpost_runtime.update.planning import Plan, joined
from outpost_runtime.update.release import Block, Release
from outpost_runtime.update.slots import Candidate, Slot
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.stock import plan_for, throw_away_damaged
from outpost_runtime.update.transfer import transfer

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


def bring(
    box: Box,
    sources: Sources,
    going: Mapping[str, Chosen],
    wishes: Wishes,
    now: int,
    reasons: dict[str, str],
) -> tuple[Mapping[str, Chosen], Plan]:
    """Bring all that was chosen, or else each base with its adapters, and each other name, alone.

    Args:
        going: By name.
        now: The box's clock, in seconds since 1970.
        reasons: Gets why a name does not come, where others do.

    Returns:
        What came, by name, and what it took.

    Raises:
        OutpostError: Nothing came, or it was stopped; this is the first failure.
    """
    parts = groups({name: each.release for name, each in going.items()})
    try:
        return going, _bring_together(box, sources, going, {}, wishes, now)
    except OutpostError as error:
        if len(parts) == 1 or wishes.should_stop():
            raise
        _LOG.warning("not all can come together: %s", error)
    came, plans, failures = dict[str, Chosen](), list[Plan](), list[OutpostError]()
    for names in parts:
        part = {name: going[name] for name in names}
        others = {name: each for name, each in going.items() if name not in came | part}
        spent = sum(plan.fetched for plan in plans)
        most = None if wishes.most_bytes is None else wishes.most_bytes - spent
        sources.take_back()
        try:
            left = replace(wishes, most_bytes=most)
            plans.append(_bring_together(box, sources, part, others, left, now))
            came |= part
        except OutpostError as error:
            reasons |= dict.fromkeys(names, str(error))
            failures.append(error)
    if not plans or wishes.should_stop():
        raise failures[0]
    return came, joined(plans)


def _bring_together(
    box: Box,
    sources: Sources,
    going: Mapping[str, Chosen],
    others: Mapping[str, Chosen],
    wishes: Wishes,
    now: int,
) -> Plan:
    """Bring some names; what is here of the others stays."""
    coming = [each.release for each in going.values()]
    waiting = [each.release for each in others.values()]
    plan = plan_for(box, sources.fetchers[0], coming, waiting)  # 4
    wishes.planned(plan)
    if wishes.dry_run:
        return plan
    _check_cost(plan, wishes.most_bytes)
    box.store.releases.expect([release.bundle for release in (*coming, *waiting)])
    fetch(box, sources, coming, plan, wishes)  # 5
    if throw_away_damaged(box, coming):  # 6
        again = plan_for(box, sources.fetchers[0], coming, waiting)
        fetch(box, sources, coming, again, wishes)
    check_files(box, coming)
    _stage(box, going, now)  # 7
    box.store.releases.expect([release.bundle for release in waiting])
    return plan


def _check_cost(plan: Plan, most: int | None) -> None:
    if most is not None and plan.fetched > most:
        raise FetchError(
            f"The update is {plan.fetched:,} bytes, and on a metered link {most:,} may be fetched.",
            hint="It comes when the link costs nothing, or with 'outpost sync' by hand.",
        )


def fetch(
    box: Box, sources: Sources, releases: Sequence[Release], plan: Plan, wishes: Wishes
) -> None:
    """Fetch the blocks of a plan, and the keys of its releases.

    Raises:
        FetchError, NotFoundError: The sources failed, or it was stopped; what came stays.
        StoreError: The store cannot be written.
    """
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


def check_files(box: Box, releases: Sequence[Release]) -> None:
    """Read every file of bundles that are here, and compare it with the manifest.

    Raises:
        BundleError: A file is another one.
    """
    for release in releases:
        verify(box.store.bundle(release.bundle))


def _stage(box: Box, going: Mapping[str, Chosen], now: int) -> None:
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
