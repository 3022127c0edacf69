"""How bundles move through a slot: pure, a slot and a moment in, a slot and history out.

::

    candidate ── gate ──→ active, on probation ──→ active, committed
        │                     │
        └── refused           └── back to the previous one, refused

Rules:

1. What is served changes only from a committed bundle to one that has passed the gate, or back.
2. The previous bundle stays until the next one is activated.
3. A bundle that failed is not tried again on this box, until a person says so.
4. Going back needs no network, no key and nobody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from outpost_runtime.errors import StoreError
from outpost_runtime.update.slots import (
    MAX_REFUSALS,
    Behaviour,
    Candidate,
    Event,
    Probation,
    Refusal,
    Slot,
)

_LONGEST_REASON = 500

MOST_STARTS = 3
"""Servers that may open a bundle on probation and die; the next one goes back."""

MOST_TRIES = 3
"""Tries in which a candidate may take too much memory; with the last one it is refused."""

_POSTPONED = "postponed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Slots as they shall be, by name, and what is said about it."""

    slots: Mapping[str, Slot]
    events: tuple[Event, ...]


def stage(name: str, slot: Slot, candidate: Candidate, now: int) -> Change:
    """Let a verified bundle wait for the gate; it takes the place of one that waits already.

    Raises:
        StoreError: The slot is pinned, or the bundle has failed here before.
    """
    if slot.pinned:
        raise StoreError(
            f"'{name}' is pinned to what it serves.", hint=f"Release it: outpost unpin {name}"
        )
    refusal = slot.refusal(candidate.bundle)
    if refusal is not None:
        raise StoreError(
            f"This bundle of '{name}' has failed here before: {refusal.reason}",
            hint="Publish a better one, or try it again by hand with 'outpost activate'.",
        )
    return _change(name, replace(slot, candidate=candidate), now, "staged", candidate.bundle)


def activate(
    slots: Mapping[str, Slot], now: int, before: Mapping[str, Behaviour] | None = None
) -> Change:
    """Serve the candidates of some slots, which have passed the gate together.

    Args:
        slots: Each has a candidate.
        before: How their active bundles did.
    """
    moved, events = {}, []
    for name, slot in slots.items():
        candidate = slot.candidate
        assert candidate is not None  # noqa: S101 - the caller's duty
        seen = (before or {}).get(name, Behaviour())
        moved[name] = replace(slot, candidate=None, release=candidate.release)
        if candidate.bundle != slot.active:
            # What was never committed is gone back to only where there is nothing better.
            stays = slot.probation is None or slot.previous is None
            moved[name] = replace(
                slot,
                candidate=None,
                active=candidate.bundle,
                release=candidate.release,
                previous=slot.active if stays else slot.previous,
                previous_release=slot.release if stays else slot.previous_release,
                probation=Probation(before=seen),
            )
        events.append(Event(at=now, name=name, what="activated", bundle=candidate.bundle))
    return Change(slots=moved, events=tuple(events))


def refuse(name: str, slot: Slot, reason: str, now: int) -> Change:
    """Let a candidate that has failed at the gate go, for good."""
    assert slot.candidate is not None  # noqa: S101 - the caller's duty
    bundle = slot.candidate.bundle
    refused = _refused(slot, bundle, reason, now)
    return _change(
        name, replace(slot, candidate=None, refused=refused), now, "refused", bundle, reason
    )


def postpone(name: str, slot: Slot, reason: str, now: int) -> Change:
    """Note a try that says nothing certain about a candidate; it is tried again."""
    assert slot.candidate is not None  # noqa: S101 - the caller's duty
    return _change(name, slot, now, _POSTPONED, slot.candidate.bundle, reason)


def times_postponed(name: str, history: Iterable[Mapping[str, object]]) -> int:
    """Return how often the candidate that was staged last under a name was postponed."""
    times = 0
    for line in history:
        if line.get("name") == name:
            times = 0 if line.get("what") == "staged" else times + (line.get("what") == _POSTPONED)
    return times


def drop(name: str, slot: Slot, reason: str, now: int) -> Change:
    """Let a candidate go that could not be tried; it may come again."""
    assert slot.candidate is not None  # noqa: S101 - the caller's duty
    return _change(
        name, replace(slot, candidate=None), now, "dropped", slot.candidate.bundle, reason
    )


def exhausted(slot: Slot) -> bool:
    """Say whether so many servers have died with the active bundle that it has to be left."""
    return slot.probation is not None and slot.probation.starts >= MOST_STARTS


def begin(name: str, slot: Slot) -> Change | None:
    """Note that a server is about to open the active bundle; None where nothing is to note."""
    if slot.probation is None:
        return None
    probation = replace(slot.probation, starts=slot.probation.starts + 1)
    return Change(slots={name: replace(slot, probation=probation)}, events=())


def end(name: str, slot: Slot, watched: int) -> Change | None:
    """Note that a server which has served the active bundle so many seconds stops in order."""
    if slot.probation is None:
        return None
    probation = replace(
        slot.probation,
        starts=max(slot.probation.starts - 1, 0),
        watched=slot.probation.watched + watched,
    )
    return Change(slots={name: replace(slot, probation=probation)}, events=())


def commit(name: str, slot: Slot, reason: str, now: int) -> Change:
    """Trust the active bundle."""
    return _change(name, replace(slot, probation=None), now, "committed", slot.active, reason)


def back(slots: Mapping[str, Slot], reason: str, now: int, *, may_return: bool = False) -> Change:
    """Serve the previous bundles again.

    Args:
        slots: That have moved together: a base and its adapters. One without a previous bundle
            serves nothing afterwards.
        may_return: Whether the bundles that are left may come again, as those may that only the
            disk has damaged; others are refused.
    """
    moved, events = {}, []
    for name, slot in slots.items():
        bundle = slot.active
        assert bundle is not None  # noqa: S101 - the caller's duty
        moved[name] = replace(
            slot,
            active=slot.previous,
            previous=None,
            release=slot.previous_release,
            previous_release=0,
            probation=None,
            refused=slot.refused if may_return else _refused(slot, bundle, reason, now),
        )
        events.append(Event(at=now, name=name, what="back", bundle=bundle, reason=_short(reason)))
    return Change(slots=moved, events=tuple(events))


def forgive(name: str, slot: Slot, bundle: str, now: int) -> Change:
    """Let a refused bundle be tried again."""
    refused = tuple(refusal for refusal in slot.refused if refusal.bundle != bundle)
    return _change(name, replace(slot, refused=refused), now, "forgiven", bundle)


def pin(name: str, slot: Slot, now: int) -> Change:
    """Take no update until it is released; a candidate that waits is let go."""
    return _change(name, replace(slot, pinned=True, candidate=None), now, "pinned", slot.active)


def unpin(name: str, slot: Slot, now: int) -> Change:
    """Take updates again."""
    return _change(name, replace(slot, pinned=False), now, "unpinned", slot.active)


def moving_together(slots: Mapping[str, Slot], bases: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Group the slots whose candidates can be tried now: a base stands before its adapters.

    A base waits while an adapter of its active bundle has no candidate for the new one, and an
    adapter while its base is neither active nor a candidate.

    Args:
        bases: Digests of the bases that active adapters hang on, by the adapters' names.
    """
    waiting = {name: slot.candidate for name, slot in slots.items() if slot.candidate is not None}
    active = {slot.active for slot in slots.values()}
    groups = []
    for name, candidate in waiting.items():
        if candidate.with_base is None:
            followers = {n for n, c in waiting.items() if c.with_base == candidate.bundle}
            hanging = {n for n, base in bases.items() if base == slots[name].active}
            if hanging <= followers or candidate.bundle == slots[name].active:
                groups.append((name, *sorted(followers)))
        elif candidate.with_base in active:
            groups.append((name,))
    return groups


def together(changes: Sequence[Change]) -> Change | None:
    """Make one change of several; None of none."""
    if not changes:
        return None
    slots = {name: slot for change in changes for name, slot in change.slots.items()}
    return Change(slots=slots, events=tuple(e for change in changes for e in change.events))


def _refused(slot: Slot, bundle: str, reason: str, now: int) -> tuple[Refusal, ...]:
    others = [refusal for refusal in slot.refused if refusal.bundle != bundle]
    return (*others, Refusal(bundle=bundle, at=now, reason=_short(reason)))[-MAX_REFUSALS:]


def _short(reason: str) -> str:
    """Return a reason that a slot file can hold, whatever a terminal or a library made of it."""
    return reason.encode("utf-8", "replace").decode()[:_LONGEST_REASON]


def _change(
    name: str, slot: Slot, now: int, what: str, bundle: str | None, reason: str = ""
) -> Change:
    event = Event(at=now, name=name, what=what, bundle=bundle, reason=_short(reason))
    return Change(slots={name: slot}, events=(event,))
