"""Carries a plan out: bytes from fetchers into the block store.

Rules:

1. What came is kept at once, whatever ends the transfer, and gone on from.
2. A block whose digest is wrong is thrown away and fetched once more from its first byte: it
   may have been put together from two sources, or kept by a disk that lost power. If
   it is wrong again the source is blamed.
3. A delta that leads nowhere (no source block, not decodable, another result) is replaced by
   the whole block.
4. Before :func:`transfer` says that it has finished, every block is durable.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from outpost_runtime.bundle import Progress
from outpost_runtime.errors import FetchError, OutpostError, StoreError, TrustError
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.delta_index import DeltaIndex, delta_path, parse_delta_index
from outpost_runtime.update.fetch import Fetcher, read_whole
from outpost_runtime.update.incoming import Incoming
from outpost_runtime.update.planning import WORKERS, Plan, Step
from outpost_runtime.update.release import Block, DeltaReference, block_path

MakeBlock = Callable[[bytes, bytes, Block], bytes]
"""Makes a block's stored bytes from a delta's and its source's, or raises OutpostError."""

GROUP = 32
"""Blocks that are made durable together."""

_GROUP_SECONDS = 10.0
"""The same for slow links: no block waits longer while others still come."""

_TRIES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Transferred:
    """What a transfer did.

    Attributes:
        finished: Whether every block of the plan is here, durably; False where it was stopped.
        bytes: Bytes of blocks and deltas that came.
        blocks: Blocks that came or were made.
        useless_deltas: Deltas that led nowhere; their blocks came whole.
        damaged: Blocks that deltas were to start from, and that cannot be read.
    """

    finished: bool
    bytes: int
    blocks: int
    useless_deltas: int
    damaged: frozenset[str]


@dataclass(kw_only=True, slots=True)
class _Tally:
    bytes: int = 0
    blocks: int = 0
    useless_deltas: int = 0
    damaged: set[str] = field(default_factory=set)


class _StoppedError(Exception):
    """Somebody set the event; never leaves this module."""


def transfer(
    plan: Plan,
    store: BlockStore,
    fetchers: Sequence[Fetcher],
    make_block: MakeBlock,
    *,
    stop: threading.Event,
    blame: Callable[[Fetcher], bool] = lambda _: False,
    progress: Progress | None = None,
) -> Transferred:
    """Carry a plan out.

    Args:
        fetchers: One for each connection, at most :data:`planning.WORKERS`.
        stop: Ends the transfer at the next piece; what came is kept.
        blame: Called with the fetcher that gave a wrong block twice; whether it has another
            source, as :meth:`FailoverFetcher.blame` says.
        progress: Called with the number of bytes of every piece that came.

    Raises:
        FetchError: The sources failed, or gave wrong bytes.
        NotFoundError: No source has a block.
        StoreError: The disk refuses.
    """
    assert 0 < len(fetchers) <= WORKERS  # noqa: S101 - the plan's peak counts so many
    store.remove(plan.collect_first)
    store.discard(plan.discard)
    work = _Work(plan.steps, store, make_block, stop, blame, progress)
    try:
        with ThreadPoolExecutor(len(fetchers), "outpost-fetch") as pool:
            futures = [pool.submit(work.run, fetcher) for fetcher in fetchers]
            try:
                for future in futures:
                    future.result()
            finally:
                work.end()  # when we are interrupted, nobody else fetches on
    finally:
        store.commit()  # what is whole stays, however it ended
    if work.finished:
        store.remove(plan.collect_last)
    return work.report()


def read_delta_index(fetcher: Fetcher, reference: DeltaReference) -> DeltaIndex:
    """Fetch a delta index and check that it is the one that the release names.

    Raises:
        NotFoundError, FetchError: It could not be fetched.
        TrustError: It is another one, or of another format.
    """
    data = read_whole(fetcher, delta_path(reference.index), limit=reference.index_bytes)
    if hashlib.sha256(data).hexdigest() != reference.index:
        raise TrustError(f"{fetcher.label} gave another delta index than the release names.")
    return parse_delta_index(data)


class _Work:
    """The steps of a plan, shared by the threads that carry them out."""

    def __init__(
        self,
        steps: Sequence[Step],
        store: BlockStore,
        make_block: MakeBlock,
        stop: threading.Event,
        blame: Callable[[Fetcher], bool],
        progress: Progress | None,
    ) -> None:
        self._steps = iter(steps)
        self._count = len(steps)
        self._store = store
        self._make_block = make_block
        self._stop = stop
        self._blame = blame
        self._progress = progress
        self._ended = False
        self._lock = threading.Lock()
        self._tally = _Tally()
        self._committed_at = time.monotonic()

    @property
    def finished(self) -> bool:
        return self._tally.blocks == self._count

    def report(self) -> Transferred:
        tally = self._tally
        return Transferred(
            finished=self.finished,
            bytes=tally.bytes,
            blocks=tally.blocks,
            useless_deltas=tally.useless_deltas,
            damaged=frozenset(tally.damaged),
        )

    def end(self) -> None:
        """Let every thread stop at its next piece."""
        self._ended = True

    def run(self, fetcher: Fetcher) -> None:
        """Carry out steps until none is left, somebody stops us, or another thread has failed."""
        try:
            for step in self._next_steps():
                self._carry_out(fetcher, step)
                self._commit_if_due()
        except _StoppedError:
            pass
        except BaseException:
            self.end()
            raise

    def _next_steps(self) -> Iterator[Step]:
        while True:
            with self._lock:
                step = next(self._steps, None)
            if step is None or self._ended or self._stop.is_set():
                return
            yield step

    def _carry_out(self, fetcher: Fetcher, step: Step) -> None:
        if step.delta is None or not self._through_delta(fetcher, step):
            with self._store.receive(step.block.id, step.block.stored) as part:
                self._complete(fetcher, part)
                self._store.keep(part)
        with self._lock:
            self._tally.blocks += 1

    def _through_delta(self, fetcher: Fetcher, step: Step) -> bool:
        """Make a block from a delta; False where that leads nowhere."""
        delta, block = step.delta, step.block
        assert delta is not None  # noqa: S101 - whoever calls has looked
        try:
            source = self._store.read(delta.source)  # first: without it the delta is of no use
        except StoreError:
            with self._lock:
                self._tally.damaged.add(delta.source)
            self._store.discard([delta.id])
            return False
        with self._store.receive(delta.id, delta.stored) as part:
            self._complete(fetcher, part)
            made = self._made(part.content(), source, block)
            if made is not None:
                self._store.stage(block.id, made)
            part.remove()  # last: until then a power cut costs no byte
        return made is not None

    def _made(self, delta: bytes, source: bytes, block: Block) -> bytes | None:
        try:
            made = self._make_block(delta, source, block)
        except OutpostError:
            made = b""
        if hashlib.sha256(made).hexdigest() == block.id:
            return made
        with self._lock:
            self._tally.useless_deltas += 1
        return None

    def _complete(self, fetcher: Fetcher, part: Incoming) -> None:
        tries = 0
        while not part.is_right():
            if tries:
                part.restart()
            if tries == _TRIES:
                label = fetcher.label
                if not self._blame(fetcher):
                    raise FetchError(
                        f"{label} gave wrong bytes for the block {part.block_id}, twice.",
                        hint="Its copy is damaged or changed; use another source.",
                    )
                tries = 0
            self._fill(fetcher, part)
            tries += 1

    def _fill(self, fetcher: Fetcher, part: Incoming) -> None:
        path = block_path(part.block_id)
        if part.is_full():  # and wrong: there is nothing to add
            return
        for piece in fetcher.read(path, start=part.size, limit=part.whole):
            part.write(piece)
            with self._lock:
                self._tally.bytes += len(piece)
                if self._progress:
                    self._progress(len(piece))
            if self._ended or self._stop.is_set():
                raise _StoppedError

    def _commit_if_due(self) -> None:
        with self._lock:
            now = time.monotonic()
            is_due = self._store.waiting >= GROUP or now - self._committed_at >= _GROUP_SECONDS
            if is_due:
                self._committed_at = now
        if is_due:
            self._store.commit()
