"""Who goes first on one machine, across its models: interactive work before batch work.

Engines order their own queues. Between engines there is one rule: before a run that is
for batch requests only, an engine looks whether another one has interactive requests,
and lets them go first; but never for longer than :data:`LONGEST_HOLD`, so that batch
work goes on, slowly, however busy the others are. A run that has begun is not stopped.
"""

import enum
import threading

from outpost_runtime.errors import BusyError

LONGEST_HOLD = 1.0
"""Seconds that a batch run lets interactive work of other models go first."""

LOOK_AGAIN = 0.005
"""Seconds after which a run that is held back looks again."""


class Priority(enum.IntEnum):
    """Who goes first when there is not room for everybody; lower values do."""

    INTERACTIVE = 0
    BATCH = 1


def lost_place() -> BusyError:
    """Return what a batch request is told that has lost its place in a queue."""
    return BusyError("An interactive request has taken this batch request's place.")


class Precedence:
    """What the engines of one machine know of each other; every engine has a :class:`Seat`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interactive = 0

    def seat(self) -> "Seat":
        """Return a place for one engine."""
        return Seat(self)

    def _change(self, difference: int) -> None:
        with self._lock:
            self._interactive += difference

    @property
    def interactive(self) -> int:
        """Interactive requests that have not ended, of all engines."""
        return self._interactive


class Seat:
    """One engine's place. Not thread-safe: the engine's lock guards it."""

    def __init__(self, precedence: Precedence) -> None:
        self._precedence = precedence
        self._own = 0
        self._held_since: float | None = None

    def begin(self, priority: Priority) -> None:
        """Tell that a request has come."""
        self._count(priority, 1)

    def end(self, priority: Priority) -> None:
        """Tell that a request has ended, whatever became of it."""
        self._count(priority, -1)

    def holds(self, now: float) -> bool:
        """Whether a batch run should wait for others; ask again after :data:`LOOK_AGAIN`.

        Args:
            now: Of a monotonic clock.
        """
        if self._precedence.interactive <= self._own:
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        if now - self._held_since < LONGEST_HOLD:
            return True
        self._held_since = None  # one run, and then the others again
        return False

    def _count(self, priority: Priority, difference: int) -> None:
        if priority is Priority.INTERACTIVE:
            self._own += difference
            self._precedence._change(difference)  # noqa: SLF001 - one mechanism in two classes
