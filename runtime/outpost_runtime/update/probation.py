"""How bundles on probation do while a server serves them, and what becomes of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from outpost_runtime.errors import OutpostError
from outpost_runtime.models import Models
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change, ProbationLimits, Verdict
from outpost_runtime.update.slots import Behaviour, Slot

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Watched:
    """A bundle on probation, from the moment that this process serves it."""

    bundle: str
    since: float
    baseline: Behaviour


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
        try:
            model, _ = self._models.find(name)
        except OutpostError:
            return None
        seen = model.engine.statistics.snapshot()
        return Behaviour(
            requests=seen.success.count,
            failures=seen.fail.count,
            seconds=seen.compute_infer.ns / 1e9,
            units=seen.units,
        )

    def begin(self, name: str, bundle: str) -> None:
        """Watch a bundle from now on."""
        self._watched[name] = _Watched(
            bundle=bundle,
            since=self._monotonic(),
            baseline=self.behaviour(name) or Behaviour(),
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
            seen = self.behaviour(name)
            if seen is None:
                continue
            if watched is None or watched.bundle != slot.active:
                self.begin(name, slot.active)  # it was on probation when this server began
                continue
            seconds = self._monotonic() - watched.since
            verdict, reason = activation.judge(
                slot.probation, _since(watched.baseline, seen), seconds, self._limits
            )
            if verdict is not Verdict.WATCH:
                self._carry_out(verdict, name, reason)

    def end(self) -> None:
        """Note how long everything on probation was served, by a server that stops in order.

        Raises:
            StoreError: The store cannot be written.
        """
        for name, watched in self._watched.items():
            seconds = int(self._monotonic() - watched.since)
            self._store.change(partial(_ending, name, watched.bundle, seconds))

    def _carry_out(self, verdict: Verdict, name: str, reason: str) -> None:
        now = int(self._clock())
        if verdict is Verdict.COMMIT:
            _LOG.info("%s is committed: %s", name, reason)
            self._store.change(lambda slots: activation.commit(name, slots[name], reason, now))
        else:
            _LOG.error("%s goes back: %s", name, reason)
            self._store.change(lambda slots: going_back(self._store, slots, name, reason, now))


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
    base = slots[name].active
    hanging = (other for other, hangs_on in bases(store, slots).items() if hangs_on == base)
    moving = {each: slots[each] for each in (name, *hanging)}
    return activation.back(moving, reason, now, may_return=may_return)


def bases(store: Store, slots: dict[str, Slot]) -> dict[str, str]:
    """Return the digests of the bases that active adapters hang on, by the adapters' names."""
    found = {}
    for name, slot in slots.items():
        try:
            base = None if slot.active is None else store.base_of(slot.active)
        except OutpostError:  # a damaged bundle hangs on nothing
            continue
        if base is not None:
            found[name] = base
    return found


def _ending(name: str, bundle: str, seconds: int, slots: dict[str, Slot]) -> Change | None:
    slot = slots.get(name, Slot())
    return activation.end(name, slot, seconds) if slot.active == bundle else None


def _since(before: Behaviour, now: Behaviour) -> Behaviour:
    return Behaviour(
        requests=now.requests - before.requests,
        failures=now.failures - before.failures,
        seconds=now.seconds - before.seconds,
        units=now.units - before.units,
    )
