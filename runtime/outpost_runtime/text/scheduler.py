"""What the text engine runs next. Pure: no clock, no thread, no tensor.

Requests wait in a queue until a row of key/value memory is theirs. Then their
prompt is read, one chunk beside every token of the others, and then they decode,
all as one batch. Rules:

1. Rows 0 to n - 1 are the n sequences that decode: the batch is the leading rows.
   When one of them leaves, the last one moves into its row.
2. At most one sequence is being read, in a row behind those.
3. Who waits is taken by priority, then the short prompts first, then by age. Who has
   waited ``patience`` seconds goes before all others, and a batch request then counts as
   interactive, for good: nobody waits for ever.
4. Interactive work does not wait for batch work: the reading of a batch prompt is
   interrupted, and the youngest batch sequence gives up its row.
5. A short prompt does not wait for one that has still more than four times its length
   to be read, unless that one has waited long itself.
6. Where no place in the queue is free, one whose deadline has passed makes room; or else,
   for interactive work, the youngest batch request of which no token has been made.

Who is interrupted goes back into the queue, and finds what it has computed in the prefix
cache.
"""

from collections import deque
from dataclasses import dataclass, field

from outpost_runtime.errors import BusyError
from outpost_runtime.priority import Priority
from outpost_runtime.text.pace import LARGEST_CHUNK
from outpost_runtime.text.prefix_cache import Root
from outpost_runtime.text.request import TextRequest

PATIENCE_SECONDS = 30.0

_MUCH_SHORTER = 4


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """A request and how far it has come.

    Attributes:
        since: When it was submitted.
        priority: The request's, until it has waited too long.
        token_ids: Prompt and answer so far.
        stored: Leading tokens of ``token_ids`` whose keys and values its row holds.
        reached: The most that it had stored before it was sent back into the queue.
        row: Its row, while it has one.
        root: What computes it: its prefixes are found by no other.
    """

    request: TextRequest
    since: float = 0.0
    root: Root = field(default_factory=Root)
    token_ids: list[int] = field(init=False)
    priority: Priority = field(init=False)
    stored: int = 0
    reached: int = 0
    row: int | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        self.priority = self.request.priority

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def adapter(self) -> int | None:
        """Index of the adapter that computes it, or None."""
        return self.request.adapter.index if self.request.adapter else None

    @property
    def unread(self) -> int:
        """Tokens that the model has still to see; 1 while it decodes."""
        return len(self.token_ids) - self.stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Copy the first ``tokens`` of a row over another."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One turn of the engine: the moves, then a batch of tokens, then a piece of a prompt.

    Attributes:
        decode: The sequences of rows 0, 1, …
        read: The sequence whose prompt is read on.
    """

    moves: tuple[Move, ...]
    decode: tuple[Sequence, ...]
    read: Sequence | None


class Scheduler:
    """The queue and the rows.

    Args:
        rows: Sequences that can live at once.
        queue_limit: Requests that may wait.
        patience: Seconds after which a batch request counts as interactive.
    """

    def __init__(self, *, rows: int, queue_limit: int, patience: float = PATIENCE_SECONDS) -> None:
        self._rows = rows
        self._queue_limit = queue_limit
        self._patience = patience
        self._now = 0.0
        self._waiting: deque[Sequence] = deque()
        self._reading: Sequence | None = None
        self._decoding: list[Sequence | None] = []  # None: has just left

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run."""
        return not self._waiting and self._reading is None and not any(self._decoding)

    @property
    def is_batch_only(self) -> bool:
        """Whether nobody interactive waits or lives."""
        everybody = (*self._waiting, self._reading, *self._decoding)
        return all(s.priority is Priority.BATCH for s in everybody if s)

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Requests with a row."""
        return sum(sequence is not None for sequence in (*self._decoding, self._reading))

    def submit(self, sequence: Sequence) -> Sequence | None:
        """Put a sequence into the queue.

        Returns:
            The one that has lost its place to it (rule 6), or None.

        Raises:
            BusyError: The queue is full.
        """
        displaced = None
        if len(self._waiting) >= self._queue_limit:
            displaced = self._displaced_by(sequence)
            if displaced is None:
                raise BusyError(f"{len(self._waiting)} requests are waiting already.")
            self._waiting.remove(displaced)
        self._waiting.append(sequence)
        return displaced

    def _displaced_by(self, newcomer: Sequence) -> Sequence | None:
        for sequence in self._waiting:
            if sequence.request.is_late(newcomer.since):
                return sequence
        lower = [s for s in self._waiting if s.priority > newcomer.priority and not s.generated]
        return max(lower, key=lambda sequence: sequence.since, default=None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; one that is gone already stays gone."""
        if self._reading is sequence:
            self._reading = None
        elif sequence in self._decoding:
            self._decoding[self._decoding.index(sequence)] = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def plan(self, now: float) -> Step:
        """Decide the next turn; row numbers hold from then to the next plan."""
        self._now = now
        self._age()
        moves = self._close_gaps()
        moves += self._join()
        moves += self._make_way()
        if self._reading is None and len(self._decoding) < self._rows:
            self._admit()
        decode = tuple(sequence for sequence in self._decoding if sequence)
        return Step(moves=tuple(moves), decode=decode, read=self._reading)

    def _age(self) -> None:
        for sequence in self._waiting:
            if self._is_overdue(sequence):
                sequence.priority = Priority.INTERACTIVE

    def _close_gaps(self) -> list[Move]:
        moves = []
        while None in self._decoding:
            last = self._decoding.pop()
            if last is None:
                continue
            gap = self._decoding.index(None)
            moves.append(_move(last, gap))
            self._decoding[gap] = last
        return moves

    def _join(self) -> list[Move]:
        """Let a sequence that has been read to its end decode with the others."""
        sequence = self._reading
        if sequence is None or not sequence.generated or sequence.unread > 1:
            return []
        self._reading = None
        row = len(self._decoding)
        moves = [] if sequence.row == row else [_move(sequence, row)]
        self._decoding.append(sequence)
        return moves

    def _make_way(self) -> list[Move]:
        """Interrupt what the first of the waiting need not wait for (rules 4 and 5)."""
        best = self._best()
        if best is None:
            return []
        if self._reading and self._goes_before(best, self._reading):
            self._send_back(self._reading)
            self._reading = None
        if self._reading is None and len(self._decoding) == self._rows:
            batch = [s for s in self._decoding if s and s.priority > best.priority]
            if batch:
                youngest = max(batch, key=lambda sequence: sequence.since)
                self._decoding[self._decoding.index(youngest)] = None
                self._send_back(youngest)
        return self._close_gaps()

    def _goes_before(self, waiting: Sequence, reading: Sequence) -> bool:
        if waiting.priority != reading.priority:
            return waiting.priority < reading.priority
        much_shorter = _pieces(waiting) * _MUCH_SHORTER < _pieces(reading)
        return much_shorter and not self._is_overdue(reading)

    def _is_overdue(self, sequence: Sequence) -> bool:
        return self._now - sequence.since > self._patience

    def _admit(self) -> None:
        best = self._best()
        if best is not None:
            self._waiting.remove(best)
            best.row = len(self._decoding)
            self._reading = best

    def _best(self) -> Sequence | None:
        return min(self._waiting, key=self._rank, default=None)

    def _rank(self, sequence: Sequence) -> tuple[Priority, int, float]:
        pieces = 0 if self._is_overdue(sequence) else _pieces(sequence)
        return sequence.priority, pieces, sequence.since

    def _send_back(self, sequence: Sequence) -> None:
        sequence.reached = max(sequence.reached, sequence.stored)
        sequence.row, sequence.stored = None, 0
        self._waiting.appendleft(sequence)


def _pieces(sequence: Sequence) -> int:
    return -(-sequence.unread // LARGEST_CHUNK)


def _move(sequence: Sequence, row: int) -> Move:
    assert sequence.row is not None  # noqa: S101 - it lives
    move = Move(source=sequence.row, target=row, tokens=sequence.stored)
    sequence.row = row
    return move
