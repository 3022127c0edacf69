"""Which requests share a run, and when it begins. Pure: no clock, no thread, no tensor.

Rules:

1. Who goes first is decided by priority, then by age. A batch request that has waited
   ``patience`` seconds counts as interactive.
2. With the first go those of equal key, in that order, as many as fit into ``max_batch``
   rows. Interactive requests take batch ones along, never the other way round.
3. Texts of different lengths share a run only while at most a quarter of what is computed
   is filling.
4. A run begins when it has as many rows as it can have, or one of the preferred sizes
   and nothing more to take, or when its first request has waited ``delay`` seconds.
5. Of one sequence, one request at a time, in the order in which they came.
6. Where no place in the queue is free, one whose deadline has passed makes room; or else,
   for interactive work, the youngest batch request.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from outpost_runtime.errors import BusyError
from outpost_runtime.priority import Priority
from outpost_runtime.tensor.request import Job

PATIENCE_SECONDS = 30.0

_MOST_FILLING = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRules:
    """How runs are formed.

    Attributes:
        max_batch: Rows of a run, at most; 0 lets every request run alone.
        preferred: Sizes that the model runs best at; a run that is not full is cut to one.
        delay: Seconds that a request waits for others to share its run.
    """

    max_batch: int
    preferred: tuple[int, ...] = ()
    delay: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What runs next; ``priority`` is that of the first of its jobs."""

    jobs: tuple[Job, ...]
    priority: Priority


class Batcher:
    """The queue of one model."""

    def __init__(self, rules: BatchRules, *, queue_limit: int) -> None:
        self._rules = rules
        self._queue_limit = queue_limit
        self._waiting: list[Job] = []
        self._sequences: set[int | str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> Job | None:
        """Put a request into the queue.

        Returns:
            The one that has lost its place to it (rule 6), or None.

        Raises:
            BusyError: The queue is full.
        """
        displaced = None
        if len(self._waiting) >= self._queue_limit:
            displaced = self._displaced_by(job)
            if displaced is None:
                raise BusyError(f"{len(self._waiting)} requests are waiting already.")
            self.withdraw([displaced])
        self._waiting.append(job)
        return displaced

    def withdraw(self, gone: Iterable[Job]) -> None:
        """Forget requests that wait for nobody any more."""
        forgotten = {id(job) for job in gone}
        self._waiting = [job for job in self._waiting if id(job) not in forgotten]

    def waiting(self) -> tuple[Job, ...]:
        """Return what waits, the oldest first."""
        return tuple(self._waiting)

    def plan(self, now: float) -> Run | float | None:
        """Decide what runs next, without beginning it.

        Returns:
            The run; or seconds after which there may be one; or None while there is nothing.
        """
        ordered = sorted(self._eligible(), key=lambda job: (_effective(job, now), job.since))
        if not ordered:
            return None
        first = ordered[0]
        jobs = self._companions(first, ordered, now)
        rest = first.since + self._rules.delay - now
        if rest > 0 and not self._is_full(jobs):
            return rest
        return Run(jobs=self._cut(jobs), priority=_effective(first, now))

    def begin(self, run: Run) -> None:
        """Take a planned run's requests out of the queue."""
        self.withdraw(run.jobs)
        self._sequences |= _ids(run.jobs)

    def end(self, run: Run) -> None:
        """Let the sequences of a run go on."""
        self._sequences -= _ids(run.jobs)

    def _displaced_by(self, newcomer: Job) -> Job | None:
        now = newcomer.since
        for job in self._waiting:
            if job.is_late(now):
                return job
        lower = [job for job in self._waiting if _effective(job, now) > newcomer.priority]
        return max(lower, key=lambda job: job.since, default=None)

    def _eligible(self) -> Iterator[Job]:
        seen = set(self._sequences)
        for job in self._waiting:
            if job.sequence is None:
                yield job
            elif job.sequence.id not in seen:
                seen.add(job.sequence.id)
                yield job

    def _companions(self, first: Job, ordered: Sequence[Job], now: float) -> tuple[Job, ...]:
        if not self._rules.max_batch:
            return (first,)
        shape = _Shape.of(first)
        jobs = [first]
        urgent = _effective(first, now) is Priority.INTERACTIVE
        for job in ordered[1:]:
            wider = shape.with_(job)
            fits = job.key == first.key and wider.rows <= self._rules.max_batch
            if fits and wider.is_dense and (urgent or _effective(job, now) is Priority.BATCH):
                jobs.append(job)
                shape = wider
        return tuple(jobs)

    def _is_full(self, jobs: Sequence[Job]) -> bool:
        rows = _rows(jobs)
        largest = max(self._rules.preferred, default=self._rules.max_batch)
        return not self._rules.max_batch or rows >= largest or rows in self._rules.preferred

    def _cut(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Leave out the last ones where what remains has a preferred size."""
        if not self._rules.preferred:
            return jobs
        for count in range(len(jobs), 0, -1):
            if _rows(jobs[:count]) in self._rules.preferred:
                return jobs[:count]
        return jobs


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a run computes: rows, the longest of them, and how much of it was asked for."""

    rows: int
    longest: int
    asked: int

    @classmethod
    def of(cls, job: Job) -> "_Shape":
        return cls(job.rows, job.length, job.rows * job.length)

    def with_(self, job: Job) -> "_Shape":
        return _Shape(
            self.rows + job.rows,
            max(self.longest, job.length),
            self.asked + job.rows * job.length,
        )

    @property
    def is_dense(self) -> bool:
        return self.asked >= (1 - _MOST_FILLING) * self.rows * self.longest


def _effective(job: Job, now: float) -> Priority:
    overdue = now - job.since > PATIENCE_SECONDS
    return Priority.INTERACTIVE if overdue else job.priority


def _rows(jobs: Sequence[Job]) -> int:
    return sum(job.rows for job in jobs)


def _ids(jobs: Collection[Job]) -> set[int | str]:
    return {job.sequence.id for job in jobs if job.sequence}
