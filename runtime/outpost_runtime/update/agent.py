"""The agent inside ``serve``: asks for updates now and then, when it may.

It fetches and stages; the keeper beside it puts candidates through the gate. A source that fails
costs nothing but a line in the log: the box goes on as it is, for a year if need be.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from outpost_runtime.errors import OutpostError
from outpost_runtime.update.box import open_box
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.policy import (
    Circumstances,
    UpdatePolicy,
    next_question,
    why_wait,
)
from outpost_runtime.update.sources import mirrors_near_by, open_sources
from outpost_runtime.update.sync import sync

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
"""How often windows and files are looked at."""

_NAP_SECONDS = 0.2
_FIRST_SECONDS = 60.0
"""At most so long after the start, the first question is asked."""

Updating = Callable[[Callable[[], bool], int | None], None]
"""Asks and fetches once: gets what says whether to stop, and the bytes that it may cost or None."""


def updating_from(store: Path, policy: UpdatePolicy) -> Updating:
    """Return what updates a provisioned box from where it was told to ask."""

    def update(should_stop: Callable[[], bool], most_bytes: int | None) -> None:
        box = open_box(store)
        mirrors = mirrors_near_by() if policy.mirrors else ()
        sources = open_sources(box.device.sources, policy, mirrors, _sleep_until(should_stop))
        wishes = Wishes(most_bytes=most_bytes, should_stop=should_stop)
        outcome = sync(box, sources, time.time(), wishes)
        if outcome.staged and outcome.plan is not None:
            names = ", ".join(outcome.staged)
            _LOG.info("%s: %d bytes came; the gate is next", names, outcome.plan.fetched)

    return update


def _sleep_until(should_stop: Callable[[], bool]) -> Callable[[float], bool]:
    """Return a sleep that ends when somebody has to stop, and says so."""

    def sleep(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0 and not should_stop():
            time.sleep(min(rest, _NAP_SECONDS))
        return should_stop()

    return sleep


def circumstances(policy: UpdatePolicy, now: datetime) -> Circumstances:
    """Return what a box sees of the world at a local time."""
    return Circumstances(
        minute=60 * now.hour + now.minute,
        allowed=policy.only_while is None or policy.only_while.exists(),
        metered=policy.metered_while is not None and policy.metered_while.exists(),
    )


class UpdateAgent:
    """Runs updates on a thread of its own.

    Args:
        update: Called on the agent's thread.
        local_now: The local time.
        monotonic: Seconds of a clock that nobody sets.
        chance: 0 to 1, anew with every call.
    """

    def __init__(
        self,
        policy: UpdatePolicy,
        update: Updating,
        *,
        local_now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone(),
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._update = update
        self._local_now = local_now
        self._monotonic = monotonic
        self._chance = chance
        self._due = monotonic() + chance() * min(_FIRST_SECONDS, policy.every_seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is being fetched stops at the next block."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def round(self) -> bool:
        """Update if it is time and nothing speaks against it; says whether it did."""
        if self._monotonic() < self._due or self._why_wait():
            return False
        self._due = self._monotonic() + next_question(self._policy, self._chance())
        metered = self._circumstances().metered
        most = self._policy.metered_bytes if metered else None
        try:
            self._update(lambda: self._should_stop(metered=metered), most)
        except OutpostError as error:
            _LOG.warning("no update: %s", error)
        return True

    def _should_stop(self, *, metered: bool) -> bool:
        costs = self._circumstances().metered and not metered  # what was free costs now
        return costs or self._stopping.is_set() or bool(self._why_wait())

    def _why_wait(self) -> str:
        return why_wait(self._policy, self._circumstances())

    def _circumstances(self) -> Circumstances:
        return circumstances(self._policy, self._local_now())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except Exception:  # noqa: BLE001 - what is served goes on, and so do updates
                _LOG.exception("an update failed")
            rest = min(max(self._due - self._monotonic(), 0.1), _LOOK_SECONDS)
            self._stopping.wait(rest)
