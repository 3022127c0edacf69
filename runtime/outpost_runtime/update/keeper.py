"""Keeps what a server serves in step with the slots of its store, and moves the slots on.

In one round:

1. What somebody else has made active (``outpost add``, ``outpost rollback``) is served.
2. Candidates are put through the gate and served, a base together with its adapters: :mod:`trial`.
3. Bundles on probation are judged by how they do.

Only one process at a time moves slots: the one that holds ``STORE/.keeper``. Decisions are made
in :mod:`activation`; every transition is on disk before it is acted on.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from outpost_runtime.errors import NotFoundError, OutpostError
from outpost_runtime.models import Models
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.gate import GateLimits
from outpost_runtime.update.probation import ProbationWatch, bases, going_back
from outpost_runtime.update.slots import Slot
from outpost_runtime.update.trial import ITS_OWN_FAULT, Trials
from outpost_runtime.update.verdict import ProbationLimits

_LOG = logging.getLogger(__name__)
_EVERY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KeeperLimits:
    """What candidates and new bundles are measured by."""

    gate: GateLimits = field(default_factory=GateLimits)
    probation: ProbationLimits = field(default_factory=ProbationLimits)


class Keeper:
    """One server's, or one command's that stands in for a server.

    Args:
        models: Opened from the same store.
        clock: Seconds since 1970.
        monotonic: Seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        limits: KeeperLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._models = models
        self._limits = limits or KeeperLimits()
        self._clock = clock
        self._watch = ProbationWatch(
            store, models, self._limits.probation, clock=clock, monotonic=monotonic
        )
        self._stop = threading.Event()
        self._trials = Trials(
            store,
            models,
            self._limits.gate,
            behaviour=self._watch.behaviour,
            moved=self._note_active,
            clock=clock,
            monotonic=monotonic,
            stop=self._stop,
        )
        self._lock: int | None = None
        self._begun: dict[str, str] = {}
        self._active: dict[str, str | None] = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Note which bundles are about to be opened; call it before they are.

        Those with which servers keep dying are left here. A disk that takes no notes keeps
        nobody from serving.
        """
        if self.may_move():
            for name in self._store.model_slots():
                self._change_if_possible(partial(self._beginning, name))
        self._active = {name: slot.active for name, slot in self._store.model_slots().items()}

    def follow_nothing(self) -> None:
        """Take what is active as it is, served or not: for a command that stands in."""
        self._active = {name: slot.active for name, slot in self._store.model_slots().items()}

    def loaded(self) -> None:
        """Let go back what could not be opened by its own fault; call it after all was tried.

        What lacks memory, a key or a base goes on to be what is active: it may be opened later.
        """
        if not self.may_move():
            return
        slots = self._store.model_slots()
        hanging = bases(self._store, slots)
        for name in sorted(slots, key=lambda name: name in hanging):
            if slots[name].previous and self._is_at_fault(name, hanging.get(name)):
                self._change_if_possible(partial(self._leaving_unopened, name, slots[name].active))
        self._follow()

    def _is_at_fault(self, name: str, base: str | None) -> bool:
        if not isinstance(self._models.unopened.get(name), ITS_OWN_FAULT):
            return False
        return base is None or base in {model.bundle.digest for model in self._models}

    def start(self) -> None:
        """Do rounds from now on, on a thread of its own."""
        self._thread = threading.Thread(target=self._rounds, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the rounds; what is on probation is noted to have been served in order."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._lock is not None:
            for name, bundle in self._begun.items():
                seconds = self._watch.watched(name, bundle)
                self._change_if_possible(partial(_ending, name, bundle, seconds))
            self._begun.clear()
            os.close(self._lock)
            self._lock = None

    def may_move(self) -> bool:
        """Say whether this process is the one that moves slots."""
        if self._lock is None:
            self._lock = _try_lock(self._store)
        return self._lock is not None

    def round(self) -> None:
        """Do everything once.

        Raises:
            StoreError: The store cannot be written.
        """
        self._follow()
        if not self.may_move():
            return
        slots = self._store.model_slots()
        if any(slot.candidate for slot in slots.values()):
            for names in activation.moving_together(slots, bases(self._store, slots)):
                if self._trials.is_due(slots[names[0]]):
                    for name in self._trials.try_out({name: slots[name] for name in names}):
                        self._served(name)
        self._watch.judge()

    def _rounds(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            try:
                self.round()
            except Exception:  # noqa: BLE001 - what is served goes on, and so does the keeper
                _LOG.exception("a round of the keeper failed")

    def _follow(self) -> None:
        """Serve what has become active, bases before adapters; stop what has become inactive."""
        slots = self._store.model_slots()
        changed = [name for name, slot in slots.items() if slot.active != self._active.get(name)]
        if not changed:
            return
        hanging = bases(self._store, slots)
        for name in sorted(changed, key=lambda name: name in hanging):
            active = self._active[name] = slots[name].active
            try:
                if active is None:
                    with contextlib.suppress(NotFoundError):
                        self._models.unload(name)
                elif name in hanging:
                    self._models.load(name)
                else:
                    adapters = [each for each, base in hanging.items() if base == active]
                    self._follow_base(name, adapters)
            except OutpostError as error:
                _LOG.error("the model %s is not served as it should be: %s", name, error)

    def _follow_base(self, name: str, adapters: list[str]) -> None:
        bundle = self._store.active(name)
        with contextlib.suppress(OutpostError):
            if self._models.get(name).bundle.digest == bundle.digest:
                return
        loaded = [self._store.active(each) for each in adapters]
        self._models.replace(name, bundle, loaded, lambda _: None)
        _LOG.info("serving %s (%s)", name, bundle.digest[:12])

    def _note_active(self, names: Collection[str]) -> None:
        for name in names:
            self._active[name] = self._store.slot(name).active

    def _counted(self, name: str, change: Change | None) -> Change | None:
        """Remember what was begun, so that an orderly stop takes back just that."""
        active = None if change is None else change.slots[name].active
        if active is not None:
            self._begun[name] = active
        return change

    def _served(self, name: str) -> None:
        slot = self._store.slot(name)
        if slot.active is not None:
            self._store.change(
                lambda slots: self._counted(name, activation.begin(name, slots[name]))
            )
            self._watch.begin(name, slot.active)
            _LOG.info("serving %s (%s), on probation", name, slot.active[:12])

    def _beginning(self, name: str, slots: dict[str, Slot]) -> Change | None:
        slot = slots.get(name, Slot())
        if slot.previous is None or not activation.exhausted(slot):
            return self._counted(name, activation.begin(name, slot))
        reason = f"{activation.MOST_STARTS} servers that had opened it have died."
        _LOG.error("%s goes back: %s", name, reason)
        return going_back(self._store, slots, name, reason, int(self._clock()))

    def _leaving_unopened(
        self, name: str, unopened: str | None, slots: dict[str, Slot]
    ) -> Change | None:
        slot = slots[name]
        if slot.active is None or slot.active != unopened:  # it went with its base
            return None
        reason = "It could not be opened when the server began."
        _LOG.error("%s goes back: %s", name, reason)
        may_return = slot.probation is None  # it has served before: its files have been damaged
        now = int(self._clock())
        return going_back(self._store, slots, name, reason, now, may_return=may_return)

    def _change_if_possible(self, decide: Callable[[dict[str, Slot]], Change | None]) -> None:
        try:
            self._store.change(decide)
        except OutpostError as error:
            _LOG.error("%s", error)


def _ending(name: str, bundle: str, seconds: int, slots: dict[str, Slot]) -> Change | None:
    slot = slots.get(name, Slot())
    return activation.end(name, slot, seconds) if slot.active == bundle else None


def _try_lock(store: Store) -> int | None:
    try:
        descriptor = os.open(store.folder / ".keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
