"""PURE: what an update will fetch, what it will take of the disk, and what may go.

Decided before the first byte moves, from documents that were verified and from what is here.

Rules:

1. After the steps every block of the releases is here.
2. A block comes whole or through a delta from a block that is here, whichever costs fewer
   bytes; what came of either before counts.
3. A block of a release to keep is never collected; the source of a delta not before it was used.
4. What does not fit beside the spare bytes is refused, after everything has been counted
   that may go first.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from outpost_runtime.errors import StoreError
from outpost_runtime.update.delta_index import Delta, DeltaIndex
from outpost_runtime.update.release import Block, DeltaReference, Release

WORKERS = 2
"""Most blocks that are under way at once; so many deltas lie beside what they make.

Two, because the second connection fills the line while the first waits for an answer: measured
with answers that begin 20 ms late, 42 MB/s over one and 81 over two.
"""

_DISK_BLOCK = 4096
"""Filesystems give whole pages of this size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What is on the disk.

    Attributes:
        blocks: Blocks that are here and right, with their stored bytes.
        partials: Bytes that came of other blocks and deltas so far.
        free: Bytes that may be written.
        spare: Bytes of them that must stay free.
    """

    blocks: Mapping[str, int]
    partials: Mapping[str, int]
    free: int
    spare: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One block to get.

    Attributes:
        delta: The way to it from another block, or None to fetch it whole.
        fetched: Bytes that are still to come.
    """

    block: Block
    delta: Delta | None
    fetched: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """An update in figures; all of them in bytes unless they say otherwise.

    Attributes:
        names: The releases, for people.
        steps: Deltas first.
        total_blocks: Different blocks of the releases.
        total: Their stored bytes.
        here: Of these, bytes that are here, parts of blocks included.
        fetched: To fetch.
        whole: What would be to fetch if there were no deltas.
        collect_first: Blocks that nobody needs; they go before the first byte.
        collect_last: Sources of deltas that nobody needs afterwards.
        discard: Parts that nobody goes on with; they go first.
        freed_first: Disk bytes of what goes first.
        peak: Disk bytes taken at the worst moment, beyond what is taken once that has gone.
        growth: Disk bytes taken at the end, beyond what is taken now; negative if it shrinks.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    total_blocks: int
    total: int
    here: int
    fetched: int
    whole: int
    collect_first: tuple[str, ...]
    collect_last: tuple[str, ...]
    discard: tuple[str, ...]
    freed_first: int
    peak: int
    growth: int
    free: int
    spare: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room at the worst moment."""
        return not self.steps or self.free + self.freed_first - self.peak >= self.spare


def plan_update(
    releases: Sequence[Release],
    deltas: Iterable[DeltaIndex],
    holdings: Holdings,
    keep: Iterable[Release],
) -> Plan:
    """Plan how releases come here; several at once, such as an adapter with its base.

    Args:
        deltas: Indexes that the releases name, from any predecessors.
        keep: Releases whose blocks must stay, such as those of every slot.

    Raises:
        StoreError: It does not fit, even after everything has gone that may.
    """
    kept = {block.id for release in keep for block in release.blocks()}
    wanted = {block.id: block for release in releases for block in release.blocks()}
    offered = [delta for index in deltas for delta in index.deltas]
    # Deltas take room themselves, and keep sources that might go otherwise.
    staying = [delta for delta in offered if delta.source in kept or delta.source in wanted]
    for usable in (offered, staying, []):
        plan = _plan(releases, wanted, usable, holdings, kept)
        if plan.fits:
            return plan
    raise _too_large(plan)


def joined(plans: Sequence[Plan]) -> Plan:
    """Return what plans come to that are carried out one after the other; at least one."""

    def total(figure: Callable[[Plan], int]) -> int:
        return sum(map(figure, plans))

    return replace(
        plans[0],
        names=tuple(name for plan in plans for name in plan.names),
        steps=tuple(step for plan in plans for step in plan.steps),
        total_blocks=total(lambda plan: plan.total_blocks),
        total=total(lambda plan: plan.total),
        here=total(lambda plan: plan.here),
        fetched=total(lambda plan: plan.fetched),
        whole=total(lambda plan: plan.whole),
        collect_first=tuple(block for plan in plans for block in plan.collect_first),
        collect_last=tuple(block for plan in plans for block in plan.collect_last),
        discard=tuple(block for plan in plans for block in plan.discard),
        freed_first=total(lambda plan: plan.freed_first),
        peak=max(plan.peak for plan in plans),
        growth=total(lambda plan: plan.growth),
    )


def collectable(present: Iterable[str], keep: Iterable[Release]) -> set[str]:
    """Return the blocks that none of the releases needs."""
    return set(present) - {block.id for release in keep for block in release.blocks()}


def useful_references(release: Release, bundles: Collection[str]) -> tuple[DeltaReference, ...]:
    """Return where deltas are listed that start from bundles that are here."""
    return tuple(reference for reference in release.deltas if reference.bundle in bundles)


def describe(plan: Plan) -> list[str]:
    """Return what a plan means, in lines for people."""
    deltas = sum(step.delta is not None for step in plan.steps)
    lines = [
        f"update      {', '.join(plan.names)}: {plan.total:,} bytes in {plan.total_blocks} blocks",
        f"here        {plan.here:,} bytes",
        f"to fetch    {plan.fetched:,} bytes: {len(plan.steps) - deltas} blocks, {deltas} deltas",
    ]
    if deltas:
        lines.append(f"            {plan.whole:,} bytes without deltas")
    lines.append(
        f"disk        {plan.free:,} bytes free, {plan.spare:,} to spare; "
        f"{plan.peak:,} more at the worst moment, {plan.growth:+,} at the end"
    )
    if plan.freed_first:
        count = len(plan.collect_first) + len(plan.discard)
        lines.append(f"goes first  {count} blocks that nothing needs: {plan.freed_first:,} bytes")
    if plan.collect_last:
        lines.append(f"goes last   {len(plan.collect_last)} blocks that deltas start from")
    return lines


def _plan(
    releases: Sequence[Release],
    wanted: Mapping[str, Block],
    offered: Iterable[Delta],
    holdings: Holdings,
    kept: Collection[str],
) -> Plan:
    # A block of another size than the release says is damaged, and not here.
    right = {b for b, block in wanted.items() if holdings.blocks.get(b) == block.stored}
    missing = {b: block for b, block in wanted.items() if b not in right}
    steps = _steps(missing, _shortest(missing, offered, holdings), holdings)
    sources = {step.delta.source for step in steps if step.delta}
    idle = holdings.blocks.keys() - wanted.keys() - set(kept)
    under_way = {step.delta.id if step.delta else step.block.id for step in steps}
    discard = holdings.partials.keys() - under_way
    first, last = sorted(idle - sources), sorted(idle & sources)
    freed = sum(_on_disk(holdings.blocks[b]) for b in first)
    freed += sum(_on_disk(holdings.partials[b]) for b in discard)
    gains = [_gain(step, holdings) for step in steps]
    beside = [_on_disk(step.delta.stored) for step in steps if step.delta]
    replaced = holdings.blocks.keys() & missing.keys()
    gone = sum(_on_disk(holdings.blocks[b]) for b in (*last, *replaced))
    fetched = sum(step.fetched for step in steps)
    total = sum(block.stored for block in wanted.values())
    whole = sum(_rest(block.id, block.stored, holdings) for block in missing.values())
    return Plan(
        names=tuple(f"{release.name} {release.version}" for release in releases),
        steps=steps,
        total_blocks=len(wanted),
        total=total,
        here=total - whole,
        fetched=fetched,
        whole=whole,
        collect_first=tuple(first),
        collect_last=tuple(last),
        discard=tuple(sorted(discard)),
        freed_first=freed,
        peak=sum(gain for gain in gains if gain > 0) + sum(heapq.nlargest(WORKERS, beside)),
        growth=sum(gains) - freed - gone,
        free=holdings.free,
        spare=holdings.spare,
    )


def _shortest(
    missing: Mapping[str, Block], offered: Iterable[Delta], holdings: Holdings
) -> dict[str, Delta]:
    """Return the delta that costs least for each block that has one; each delta serves once."""
    best: dict[str, Delta] = {}
    taken: set[str] = set()
    ranked = sorted(offered, key=lambda d: (_rest(d.id, d.stored, holdings), d.block, d.source))
    for delta in ranked:
        # Two blocks may have equal deltas; two workers cannot receive the same one at once.
        is_free = delta.id not in taken and delta.id not in missing
        is_useful = delta.block in missing and delta.block not in best
        has_source = delta.source in holdings.blocks and delta.source not in missing
        if is_free and is_useful and has_source:
            best[delta.block] = delta
            taken.add(delta.id)
    return best


def _steps(
    missing: Mapping[str, Block], deltas: Mapping[str, Delta], holdings: Holdings
) -> tuple[Step, ...]:
    through, whole = [], []
    for block in missing.values():
        cost = _rest(block.id, block.stored, holdings)
        delta = deltas.get(block.id)
        if delta and _rest(delta.id, delta.stored, holdings) < cost:
            rest = _rest(delta.id, delta.stored, holdings)
            through.append(Step(block=block, delta=delta, fetched=rest))
        else:
            whole.append(Step(block=block, delta=None, fetched=cost))
    return (*through, *whole)


def _rest(name: str, stored: int, holdings: Holdings) -> int:
    # A part that is too long is of something else: it will be thrown away.
    came = holdings.partials.get(name, 0)
    return stored - came if came <= stored else stored


def _gain(step: Step, holdings: Holdings) -> int:
    name = step.delta.id if step.delta else step.block.id
    return _on_disk(step.block.stored) - _on_disk(holdings.partials.get(name, 0))


def _on_disk(size: int) -> int:
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK


def _too_large(plan: Plan) -> StoreError:
    return StoreError(
        f"{', '.join(plan.names)} needs {plan.peak:,} bytes of the disk "
        f"and {plan.spare:,} to spare; {plan.free:,} are free, "
        f"and {plan.freed_first:,} more once all has gone that nothing needs.",
        hint="Free some space, or unpin what needs not be kept; nothing was changed.",
    )
