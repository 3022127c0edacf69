"""What a box spends its time on while it takes an update, by phase.

Nothing of it is simulated: it is the sync of the product with clocks put around its parts. Parts
that two connections do at the same time are told as the seconds of both.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from outpost_runtime.models import Models
from outpost_runtime.update import bringing
from outpost_runtime.update.box import Box
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.keeper import Keeper
from outpost_runtime.update.making import make_block
from outpost_runtime.update.policy import UpdatePolicy
from outpost_runtime.update.sources import Sources, open_sources
from outpost_runtime.update.sync import sync
from outpost_runtime.update.transfer import transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class Phases:
    """Seconds.

    Attributes:
        planning: Metadata, releases, delta indexes, the plan.
        fetching: From the plan until all blocks are here, durably.
        reading: In there, of both connections: waiting for the source.
        making: In there, of both connections: blocks from deltas, decrypted and encrypted again.
        checking: All blocks against their names, decrypted files against the manifest.
        gate: Opened, golden inputs answered, activated.
    """

    planning: float
    fetching: float
    reading: float
    making: float
    checking: float
    gate: float

    @property
    def total(self) -> float:
        """From the question until it serves."""
        return self.planning + self.fetching + self.checking + self.gate


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What an update took: bytes of blocks and deltas, and time."""

    fetched: int
    phases: Phases


def take(box: Box, locations: Sequence[str], policy: UpdatePolicy | None = None) -> Update:
    """Update a box and let it through the gate.

    Args:
        locations: Where to ask.
        policy: For its bandwidth cap.
    """
    watch = _Watch()
    opened = open_sources(locations, policy or UpdatePolicy())
    sources = Sources(fetchers=tuple(_Timed(each, watch) for each in opened.fetchers))
    with _patched(watch):
        watch.begin()
        outcome = sync(box, sources, time.time(), Wishes(planned=lambda _: watch.mark("planning")))
        watch.mark("checking")
    _pass_gate(box, outcome.staged)
    watch.mark("gate")
    assert outcome.plan is not None
    return Update(fetched=outcome.plan.fetched, phases=Phases(**watch.seconds))


def middle(updates: Sequence[Update]) -> Update:
    """Return medians of the same update, done several times."""
    assert len({each.fetched for each in updates}) == 1, updates
    seconds = {f.name: median(getattr(u.phases, f.name) for u in updates) for f in fields(Phases)}
    return Update(fetched=updates[0].fetched, phases=Phases(**seconds))


def _pass_gate(box: Box, names: Sequence[str]) -> None:
    """Try the candidates as ``outpost sync`` does, and see that they have passed."""
    models = Models(box.store)
    keeper = Keeper(box.store, models)
    keeper.may_move()
    keeper.follow_nothing()
    keeper.round()
    keeper.stop()
    models.close()
    slots = box.store.slots()
    assert names, "nothing was offered"
    assert all(slots[name].candidate is None and slots[name].active for name in names), slots
    assert not any(slots[name].refused for name in names), slots


@dataclass(kw_only=True)
class _Watch:
    """Adds up seconds by name, from several threads."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {each.name: 0.0 for each in fields(Phases)}
    )
    last: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        self.last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Say that a phase ends now, and the next one begins."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now

    @contextmanager
    def around(self, part: str) -> Iterator[None]:
        """Count what is done in here for a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.seconds[part] += time.perf_counter() - began


class _Timed:
    """A fetcher, timed while it is waited for."""

    def __init__(self, fetcher: Fetcher, watch: _Watch) -> None:
        self._fetcher = fetcher
        self._watch = watch

    @property
    def label(self) -> str:
        return self._fetcher.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        pieces = self._fetcher.read(path, start=start, limit=limit)
        if not path.startswith("blocks/"):  # it is part of the planning
            yield from pieces
            return
        while True:
            with self._watch.around("reading"):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


@contextmanager
def _patched(watch: _Watch) -> Iterator[None]:
    """Put clocks around the parts of a sync that have no hook of their own."""

    def timed_transfer(*arguments: Any, **named: Any) -> Any:
        done = transfer(*arguments, **named)
        watch.mark("fetching")
        return done

    def timed_making(*arguments: Any) -> bytes:
        with watch.around("making"):
            return make_block(*arguments)

    with ExitStack() as stack:
        stack.enter_context(_replaced("transfer", timed_transfer))
        stack.enter_context(_replaced("make_block", timed_making))
        yield


@contextmanager
def _replaced(name: str, by: Callable[..., Any]) -> Iterator[None]:
    kept = getattr(bringing, name)
    setattr(bringing, name, by)
    try:
        yield
    finally:
        setattr(bringing, name, kept)
