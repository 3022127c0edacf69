"""The tensor engine: one bounded queue in front of one session, whose runs requests share.

What runs next is decided in ``batcher.py``. What fails, fails alone: requests whose
common run failed are run one by one. A request that nobody waits for any more,
cancelled or past its deadline, leaves the queue.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from outpost_runtime.errors import (
    BusyError,
    ConfigurationError,
    DeadlineError,
    InvalidInputError,
    OutpostError,
    UnavailableError,
)
from outpost_runtime.interface import StateSpec
from outpost_runtime.priority import LOOK_AGAIN, Precedence, Priority, lost_place
from outpost_runtime.sessions import Session
from outpost_runtime.statistics import RunTimes, Statistics
from outpost_runtime.tensor.batcher import Batcher, BatchRules, Run
from outpost_runtime.tensor.joining import join, split
from outpost_runtime.tensor.request import Job, Outputs, SequenceStep
from outpost_runtime.tensor.sequences import Sequences
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

_SHORTEST_RETRY_SECONDS = 0.1
_WEIGHT = 0.2

_LAST_RUN_SECONDS = 10.0
"""What runs when an engine is closed has so long to end by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLimits:
    """How much a tensor model may take of a machine.

    Attributes:
        concurrency: Runs at the same time.
        queue: Requests that may wait before others are refused.
        delay: Seconds that a request waits for others to share its run.
        preferred: Numbers of rows that the model runs best at.

    Raises:
        ConfigurationError: A limit leaves nothing to work with.
    """

    concurrency: int = 1
    queue: int = 64
    delay: float = 0.0
    preferred: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (min(self.concurrency, self.queue, *self.preferred, 1) >= 1 and self.delay >= 0):
            raise ConfigurationError(
                "A model needs at least one run at a time, one place to wait, batches of one row, "
                "and no negative delay."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorShape:
    """What the engine has to know of a model's dimensions; see ``TensorInterface``."""

    max_batch: int
    max_sequence: int | None = None
    padded: bool = False
    states: tuple[StateSpec, ...] = ()


class TensorEngine:
    """Runs a session for many callers.

    Args:
        session: The engine owns it from now on; with a ``concurrency`` above 1 it must bear
            runs at the same time.
        precedence: What it knows of other engines; None is that there are none.

    Attributes:
        inputs: What a request brings.
        outputs: What a request gets.
        admit: Is told how many numbers the inputs of a request's run may have, before it is queued,
            and refuses by an error; None admits all.
    """

    def __init__(
        self,
        session: Session,
        shape: TensorShape,
        limits: TensorLimits | None = None,
        precedence: Precedence | None = None,
    ) -> None:
        self.shape = shape
        self.limits = limits or TensorLimits()
        self.statistics = Statistics()
        self._session = session
        rules = BatchRules(
            max_batch=shape.max_batch, preferred=self.limits.preferred, delay=self.limits.delay
        )
        self._batcher = Batcher(rules, queue_limit=self.limits.queue)
        self._sequences = Sequences(shape.states, session.inputs)
        hidden = {name for state in shape.states for name in (state.input, state.output)}
        self.inputs = tuple(spec for spec in session.inputs if spec.name not in hidden)
        self.outputs = tuple(spec for spec in session.outputs if spec.name not in hidden)
        self._seat = (precedence or Precedence()).seat()
        self._per_token = _per_token(session.outputs) if shape.padded else frozenset()
        self.admit: Callable[[int], None] | None = None
        self._run_seconds = 0.01
        self._running = 0
        self._work_ahead = 0
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"tensor-engine-{number}", daemon=True)
            for number in range(self.limits.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def session_inputs(self) -> tuple[TensorSpec, ...]:
        """What a run needs: what a request brings, and states."""
        return self._session.inputs

    @property
    def busy(self) -> int:
        """Requests that wait or run."""
        with self._changed:
            return len(self._batcher) + self._running

    def submit(
        self,
        feeds: Mapping[str, Array],
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        sequence: SequenceStep | None = None,
    ) -> "Future[Outputs]":
        """Queue a request; cancelling the future before its run leaves it out.

        Args:
            deadline: Of ``time.monotonic``, after which nobody waits for the answer: who has
                waited so long cancels the future, and a run that ends later counts as failed.
            sequence: For models with a state, which need one; others do not look at it.

        Returns:
            A future of the outputs by name; it raises what :meth:`Session.run` raises,
            DeadlineError, BusyError when a batch request has lost its place to an interactive one,
            or UnavailableError when the engine is closed before its run.

        Raises:
            InvalidInputError: The feeds do not match the model's inputs, or are too large: for its
                limits, or for the memory that its run would take.
            BusyError: Too many requests are waiting; it says when to try again.
            UnavailableError: The engine is closed.
        """
        job = self._job(feeds, priority, deadline, sequence)
        with self._changed:
            if self._closing:
                raise _closed()
            if self.admit is not None:
                self.admit(job.size // job.rows * max(self.shape.max_batch, 1))
            try:
                displaced = self._batcher.submit(job)
            except BusyError as error:
                raise self._busy(error) from None
            if displaced is not None:
                self._refuse(displaced, job.since)
            self._work_ahead += job.size
            job.work = self._work_ahead
            self._seat.begin(priority)
            self._changed.notify()  # of the workers; while it is closing, nobody comes here
        job.future.add_done_callback(lambda _: self._ended(job))
        return job.future

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, finish what runs, fail what still waits, free the model.

        Args:
            drain_seconds: How long what waits may go on to be answered before that.
        """
        until = time.monotonic() + drain_seconds
        with self._changed:
            self._closing = True
            while len(self._batcher) and (rest := until - time.monotonic()) > 0:
                self._changed.wait(rest)
            left = self._batcher.waiting()
            self._batcher.withdraw(left)
            self._changed.notify_all()
        for job in left:
            _fail(job, _closed())
        last = time.monotonic() + _LAST_RUN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, last - time.monotonic()))
        self._session.close()  # which ends a run that hangs in another process
        for thread in self._threads:
            thread.join(_LAST_RUN_SECONDS)

    def _job(
        self,
        feeds: Mapping[str, Array],
        priority: Priority,
        deadline: float | None,
        sequence: SequenceStep | None,
    ) -> Job:
        check_feeds(self.inputs, feeds)
        self._check_sizes(feeds)
        if self.shape.states and sequence is None:
            raise InvalidInputError("The model keeps a state: a request must name a sequence_id.")
        key, length = self._key(feeds)
        return Job(
            feeds=feeds,
            key=key,
            rows=self._rows(feeds),
            length=length,
            since=time.monotonic(),
            priority=priority,
            deadline=deadline,
            sequence=sequence if self.shape.states else None,
        )

    def _check_sizes(self, feeds: Mapping[str, Array]) -> None:
        limits = (("batch", self.shape.max_batch), ("length", self.shape.max_sequence))
        for name, array in feeds.items():
            for size, (what, most) in zip(array.shape, limits, strict=False):
                if most and not 1 <= size <= most:
                    raise InvalidInputError(
                        f"Input '{name}' has a {what} of {size}; this model takes 1 to {most}."
                    )
        sizes = {array.shape[0] for array in feeds.values()} if self.shape.max_batch else set()
        if len(sizes) > 1:
            raise InvalidInputError(
                f"The inputs have different batch sizes: {', '.join(map(str, sorted(sizes)))}."
            )

    def _key(self, feeds: Mapping[str, Array]) -> tuple[tuple[object, ...], int]:
        """Return what requests must share to share a run, and the length that they need not."""
        if not self.shape.padded:
            return tuple(array.shape[1:] for array in feeds.values()), 0
        lengths = {array.shape[1] for array in feeds.values()}
        if len(lengths) > 1:
            raise InvalidInputError("The inputs have different lengths.")
        return tuple(array.shape[2:] for array in feeds.values()), lengths.pop()

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        return next(iter(feeds.values())).shape[0] if self.shape.max_batch else 1

    def _busy(self, error: BusyError) -> BusyError:
        runs = 1 + len(self._batcher) / max(self.shape.max_batch, 1)
        seconds = self._run_seconds * runs / self.limits.concurrency
        seconds = max(_SHORTEST_RETRY_SECONDS, round(seconds, 1))
        return BusyError(error.message, hint=f"Try again in {seconds:g} s.", retry_after=seconds)

    def _ended(self, job: Job) -> None:
        with self._changed:
            if job.future.cancelled():
                self._batcher.withdraw([job])
                self._count_if_late(job, time.monotonic())
            self._work_ahead -= job.size
            self._seat.end(job.priority)
            self._tell_waiting()

    def _work(self) -> None:
        while (run := self._next_run()) is not None:
            jobs = [job for job in run.jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._execute(jobs)
            with self._changed:
                self._running -= len(run.jobs)
                self._batcher.end(run)
                self._tell_waiting()

    def _tell_waiting(self) -> None:
        # Waking threads costs as much as a small model's run: only those who can use it.
        if self._closing or (self.shape.states and len(self._batcher)):
            self._changed.notify_all()

    def _next_run(self) -> Run | None:
        with self._changed:
            while True:
                now = time.monotonic()
                self._expire(now)
                planned = self._batcher.plan(now)
                if isinstance(planned, Run) and not self._holds(planned, now):
                    self._batcher.begin(planned)
                    self._running += len(planned.jobs)
                    return planned
                if self._closing and not len(self._batcher):
                    return None
                self._changed.wait(LOOK_AGAIN if isinstance(planned, Run) else planned)

    def _holds(self, run: Run, now: float) -> bool:
        return run.priority is Priority.BATCH and self._seat.holds(now)

    def _expire(self, now: float) -> None:
        late = [job for job in self._batcher.waiting() if job.is_late(now)]
        self._batcher.withdraw(late)
        for job in late:
            self._refuse(job, now)

    def _refuse(self, job: Job, now: float) -> None:
        """Fail one that has left the queue: it is too late, or has lost its place."""
        if self._count_if_late(job, now):
            _fail(job, _late())
            return
        error = self._busy(lost_place())
        self.statistics.failed(now - job.since, error)
        _fail(job, error)

    def _count_if_late(self, job: Job, now: float) -> bool:
        if job.is_late(now):
            self.statistics.failed(now - job.since, _late())
            self._waited(job, now)
        return job.is_late(now)

    def _execute(self, jobs: Sequence[Job]) -> None:
        began = time.monotonic()
        try:
            outputs, times = self._run(jobs)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if len(jobs) > 1:
                for job in jobs:
                    self._execute([job])
                return
            now = time.monotonic()
            self.statistics.ran(jobs[0].rows, RunTimes(compute_infer=now - began))
            self.statistics.failed(now - jobs[0].since, error)
            jobs[0].future.set_exception(error)
            return
        now = time.monotonic()
        self._run_seconds += _WEIGHT * (now - began - self._run_seconds)
        self.statistics.ran(sum(job.rows for job in jobs), times)
        for job, part in zip(jobs, outputs, strict=True):
            if not self._count_if_late(job, now):
                self.statistics.succeeded(
                    job.rows, total=now - job.since, queue=began - job.since, times=times
                )
                self._waited(job, now)
            job.future.set_result(part)

    def _waited(self, job: Job, now: float) -> None:
        if job.priority is Priority.INTERACTIVE:
            self.statistics.waited(job.waited(now))

    def _run(self, jobs: Sequence[Job]) -> tuple[list[Outputs], RunTimes]:
        began = time.monotonic()
        feeds, sequence = join(jobs), jobs[0].sequence
        if sequence is not None:
            with self._changed:
                feeds = {**feeds, **self._sequences.before(sequence, feeds, began)}
        joined = time.monotonic()
        outputs = self._session_run(feeds, sequence)
        ran = time.monotonic()
        if sequence is not None:
            with self._changed:
                outputs = self._sequences.after(sequence, outputs, ran)
        parts = split(outputs, jobs, per_token=self._per_token)
        times = RunTimes(
            compute_input=joined - began,
            compute_infer=ran - joined,
            compute_output=time.monotonic() - ran,
        )
        return parts, times

    def _session_run(self, feeds: Mapping[str, Array], sequence: SequenceStep | None) -> Outputs:
        try:
            return self._session.run(feeds)
        except BaseException:
            if sequence is not None:
                with self._changed:
                    self._sequences.failed(sequence)
            raise


def _per_token(specs: Sequence[TensorSpec]) -> frozenset[str]:
    return frozenset(spec.name for spec in specs if spec.shape[1:2] == (None,))


def _fail(job: Job, error: OutpostError) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)


def _late() -> DeadlineError:
    return DeadlineError("The deadline passed before the model could run.")


def _closed() -> UnavailableError:
    return UnavailableError("The model is being closed.", hint="Try again in a moment.")
