"""How bundles on probation do while a server serves them, and what becomes of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from outpost_runtime.errors import OutpostError, StoreError
from outpost_runtime.latency import Histograms, usual_waits
from outpost_runtime.models import Models
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.slots import Behaviour, Slot
from outpost_runtime.update.verdict import ProbationLimits, Verdict, judge

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What a model's engine has counted, all in all."""

    requests: int = 0
    failures: int = 0
    waits: Histograms = field(default_factory=dict)

    def after(self, before: "_Seen") -> Behaviour:
        """Return what came after ``before``."""
        return Behaviour(
            requests=self.requests - before.requests,
            failures=self.failures - before.failures,
            waits=usual_waits(self.waits, before.waits),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Watched:
    """A bundle on probation, from the moment that this process serves it."""

    bundle: str
    since: float
    baseline: _Seen


class ProbationWatch:
    """Watches the bundles that one server serves on probation.

    Args:
        clock: Seconds since 1970.
        monotonic: Seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        limits: ProbationLimits,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._models = models
        self._limits = limits
        self._clock = clock
        self._monotonic = monotonic
        self._watched: dict[str, _Watched] = {}

    def behaviour(self, name: str) -> Behaviour | None:
        """Return how what is served under a name has done; None where nothing is.

        An adapter's is that of its base with all adapters.
        """
        seen = self._seen(name)
        return None if seen is None else seen.after(_Seen())

    def begin(self, name: str, bundle: str) -> None:
        """Watch a bundle from now on."""
        self._watched[name] = _Watched(
            bundle=bundle,
            since=self._monotonic(),
            baseline=self._seen(name) or _Seen(),
        )

    def judge(self) -> None:
        """Commit what has done well for long enough, and let go back what does badly.

        Raises:
            StoreError: The store cannot be written.
        """
        for name, slot in self._store.slots().items():
            if slot.active is None or slot.probation is None:
                continue
            watched = self._watched.get(name)
            seen = self._seen(name)
            if seen is None:
                continue
            if watched is None or watched.bundle != slot.active:
                self.begin(name, slot.active)  # it was on probation when this server began
                continue
            seconds = self._monotonic() - watched.since
            verdict, reason = judge(
                slot.probation, seen.after(watched.baseline), seconds, self._limits
            )
            if verdict is Verdict.BACK and slot.previous is None:
                continue  # there is nothing to go back to: badly is better than not at all
            if verdict is not Verdict.WATCH:
                self._carry_out(verdict, name, reason)

    def watched(self, name: str, bundle: str) -> int:
        """Return how many seconds this server has watched a bundle."""
        found = self._watched.get(name)
        if found is None or found.bundle != bundle:
            return 0
        return int(self._monotonic() - found.since)

    def _seen(self, name: str) -> _Seen | None:
        try:
            model, _ = self._models.find(name)
        except OutpostError:
            return None
        statistics = model.engine.statistics
        counted = statistics.snapshot()
        return _Seen(
            requests=counted.success.count,
            failures=counted.fail.count - counted.blameless,
            waits=statistics.waits(),
        )

    def _carry_out(self, verdict: Verdict, name: str, reason: str) -> None:
        now, bundle = int(self._clock()), self._watched[name].bundle

        def decide(slots: dict[str, Slot]) -> Change | None:
            slot = slots.get(name, Slot())
            if slot.active != bundle or slot.probation is None:
                return None  # somebody else, or its base, has moved it meanwhile
            if verdict is Verdict.COMMIT:
                return activation.commit(name, slot, reason, now)
            return going_back(self._store, slots, name, reason, now)

        try:
            moved = self._store.change(decide)
        except OutpostError as error:
            _LOG.error("%s cannot be moved: %s", name, error)
            return
        if moved is not None:
            level = logging.INFO if verdict is Verdict.COMMIT else logging.ERROR
            _LOG.log(level, "%s: %s: %s", name, verdict.name.lower(), reason)


def going_back(
    store: Store,
    slots: dict[str, Slot],
    name: str,
    reason: str,
    now: int,
    *,
    may_return: bool = False,
) -> Change:
    """Let a name go back, and with a base the adapters that hang on it; see `activation.back`."""
    with_base = _base_to_go_with(store, slots, name)
    if with_base is not None:
        return going_back(store, slots, with_base, reason, now, may_return=may_return)
    base = slots[name].active
    hanging = [other for other, digest in bases(store, slots).items() if digest == base]
    moving = {each: slots[each] for each in (name, *hanging)}
    change = activation.back(moving, reason, now, may_return=may_return)
    after = dict(change.slots)
    for each in hanging:  # one that came alone has a previous bundle of the base that is left
        previous = after[each].active
        if previous is not None and _base_of(store, previous) != after[name].active:
            after[each] = replace(after[each], active=None, release=0)
    return Change(slots=after, events=change.events)


def _base_to_go_with(store: Store, slots: dict[str, Slot], name: str) -> str | None:
    """Return the base that an adapter has to go back with, since it came with it.

    Raises:
        StoreError: The adapter's previous bundle belongs to a base that is not here any more.
    """
    previous = slots[name].previous
    base = None if previous is None else _base_of(store, previous)
    if base is None or any(slot.active == base for slot in slots.values()):
        return None
    for other, slot in slots.items():
        if slot.previous == base:
            return other
    raise StoreError(
        f"The previous bundle of '{name}' belongs to a base that is not here any more.",
        hint="Publish an adapter for the base that is active.",
    )


def _base_of(store: Store, bundle: str) -> str | None:
    try:
        return store.base_of(bundle)
    except OutpostError:  # a damaged bundle hangs on nothing
        return None


def bases(store: Store, slots: dict[str, Slot]) -> dict[str, str]:
    """Return the digests of the bases that active adapters hang on, by the adapters' names."""
    found = {}
    for name, slot in slots.items():
        base = None if slot.active is None else _base_of(store, slot.active)
        if base is not None:
            found[name] = base
    return found
