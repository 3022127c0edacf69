"""Candidates on trial: opened beside what is served, put through the gate, and served or refused.

A base is tried together with its adapters: all of them pass or none. What a candidate is refused
for is its own fault; what the box lacks (memory, a key, room on the disk) lets it wait. One that
takes more memory than it may, where nobody can tell it from others, has three tries.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial

from outpost_runtime.budget import trial_bytes
from outpost_runtime.bundle import Bundle, verify
from outpost_runtime.errors import (
    BundleError,
    ExecutionError,
    InvalidInputError,
    NotFoundError,
    OutpostError,
    UnsupportedError,
)
from outpost_runtime.models import Models
from outpost_runtime.opening import Model
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.gate import (
    GateLimits,
    OverrunError,
    bytes_in_use,
    examine,
    examine_adapter,
)
from outpost_runtime.update.slots import Behaviour, Candidate, Slot

ITS_OWN_FAULT = (BundleError, ExecutionError, InvalidInputError, UnsupportedError)
"""What a bundle is left for; whatever else happens is the box's, and it may be tried again."""

_LOG = logging.getLogger(__name__)
_AGAIN_SECONDS = 60.0


class Trials:
    """Tries the candidates of one store on one server's models.

    Args:
        behaviour: How what is served under a name has done; None where nothing is.
        moved: Called with the names whose slots have been moved, before they are served.
        clock: Seconds since 1970.
        monotonic: Seconds of a clock that nobody sets.
        stop: Ends the waiting for a candidate's answers.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        limits: GateLimits,
        *,
        behaviour: Callable[[str], Behaviour | None],
        moved: Callable[[Collection[str]], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._models = models
        self._limits = limits
        self._behaviour = behaviour
        self._moved = moved
        self._clock = clock
        self._monotonic = monotonic
        self._stop = stop
        self._next_try: dict[Candidate, float] = {}

    def is_due(self, slot: Slot) -> bool:
        """Say whether a slot's candidate may be tried now; if so, not again for a minute."""
        candidate, now = _candidate(slot), self._monotonic()
        if now < self._next_try.get(candidate, now):
            return False
        self._next_try[candidate] = now + _AGAIN_SECONDS
        return True

    def try_out(self, chosen: Mapping[str, Slot]) -> Collection[str]:
        """Put candidates through the gate: a base and its adapters, or one adapter.

        Returns:
            The names under which new bundles are served now; none if they were refused or have to
            wait, or are what is served already.

        Raises:
            StoreError: A refusal cannot be written.
        """
        shown = ", ".join(chosen)
        try:
            return self._pass_gate(chosen)
        except ITS_OWN_FAULT as error:
            _LOG.error("the candidate of %s is refused: %s", shown, error)
            self._store.change(partial(self._refusing, chosen, error.message))
        except OverrunError as error:
            _LOG.error("the candidate of %s takes too much: %s", shown, error)
            self._store.change(partial(self._postponing, chosen, error.message))
        except OutpostError as error:
            _LOG.warning("the candidate of %s has to wait: %s", shown, error)
        return ()

    def _pass_gate(self, chosen: Mapping[str, Slot]) -> Collection[str]:
        here = {n: s for n, s in chosen.items() if _candidate(s).bundle == s.active}
        if here:  # published again: a higher counter is all that is new
            self._activate(here)
            return ()  # what comes with it is on its own in the next round
        candidates = {name: _candidate(slot) for name, slot in chosen.items()}
        bundles = {name: self._store.bundle(c.bundle) for name, c in candidates.items()}
        first = next(iter(chosen))
        base = candidates[first].with_base
        if base is None:
            self._replace(first, bundles, chosen)
        else:
            self._replace_adapter(first, bundles[first], self._store.bundle(base), chosen)
        return tuple(chosen)

    def _replace(
        self, name: str, bundles: Mapping[str, Bundle], chosen: Mapping[str, Slot]
    ) -> None:
        adapters = [each for each in bundles if each != name]
        before = bytes_in_use()

        def accept(model: Model) -> None:
            examine(
                model,
                adapters,
                expected_bytes=self._models.expected_bytes(name, bundles[name], adapters),
                bytes_before=before,
                limits=self._limits,
                stop=self._stop,
            )
            self._activate(chosen)

        self._models.replace(name, bundles[name], [bundles[a] for a in adapters], accept)

    def _replace_adapter(
        self, name: str, adapter: Bundle, base: Bundle, chosen: Mapping[str, Slot]
    ) -> None:
        verify(adapter)
        settings = self._models.settings(base.manifest.name)
        with self._models.memory_for(f"gate of {name}", trial_bytes(base, settings)):
            examine_adapter(adapter, base, settings, limits=self._limits, stop=self._stop)
        self._activate(chosen)
        if base.digest in {model.bundle.digest for model in self._models.texts()}:
            self._models.load(name)

    def _activate(self, chosen: Mapping[str, Slot]) -> None:
        seen = {name: self._behaviour(name) or Behaviour() for name in chosen}
        now = int(self._clock())

        def decide(slots: dict[str, Slot]) -> Change:
            current = {name: slots.get(name, Slot()) for name in chosen}
            if any(slot.candidate != chosen[name].candidate for name, slot in current.items()):
                raise NotFoundError("The candidate has gone or changed while it was tried.")
            return activation.activate(current, now, seen)

        self._store.change(decide)
        self._moved(tuple(chosen))

    def _postponing(
        self, chosen: Mapping[str, Slot], reason: str, slots: dict[str, Slot]
    ) -> Change | None:
        first = next(iter(chosen))
        if activation.times_postponed(first, self._store.history()) + 1 >= activation.MOST_TRIES:
            return self._refusing(chosen, reason, slots)
        slot = slots.get(first, Slot())
        if slot.candidate != chosen[first].candidate:
            return None
        return activation.postpone(first, slot, reason, int(self._clock()))

    def _refusing(
        self, chosen: Mapping[str, Slot], reason: str, slots: dict[str, Slot]
    ) -> Change | None:
        still = {  # another candidate may wait by now, which nobody has tried
            name: slots[name]
            for name, slot in chosen.items()
            if name in slots and slots[name].candidate == slot.candidate
        }
        now = int(self._clock())
        return activation.together(
            [activation.refuse(name, slot, reason, now) for name, slot in still.items()]
        )


def _candidate(slot: Slot) -> Candidate:
    assert slot.candidate is not None  # noqa: S101 - it moves
    return slot.candidate
