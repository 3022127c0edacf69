"""What a model has done so far, in the terms of the Open Inference Protocol's statistics."""

import copy
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from outpost_runtime.errors import BusyError, DeadlineError, InvalidInputError
from outpost_runtime.latency import Histograms, Wait


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Take in one more."""
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass(kw_only=True, slots=True)
class BatchStatistics:
    """Runs of one number of rows."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(kw_only=True, slots=True)
class Snapshot:
    """A model's statistics at one moment.

    Attributes:
        last_inference: Milliseconds since 1970; 0 is never.
        inference_count: Rows of successful requests.
        blameless: Failed requests that are nobody's fault but time's or the callers'.
        execution_count: Runs.
        success: Successful requests, from their arrival to their answer.
        fail: The same of failed ones.
        queue: Of successful requests, as the three that follow.
        batches: By number of rows.
    """

    last_inference: int = 0
    inference_count: int = 0
    blameless: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTimes:
    """Seconds that a run spent on its parts."""

    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0


class Statistics:
    """Counts what a model does; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()
        self._waits: Histograms = {}

    def ran(self, rows: int, times: RunTimes) -> None:
        """Take in a run."""
        with self._lock:
            self._now.execution_count += 1
            self._now.last_inference = round(time.time() * 1000)
            batch = self._now.batches.setdefault(rows, BatchStatistics())
            _add(batch, times)

    def succeeded(self, rows: int, *, total: float, queue: float, times: RunTimes) -> None:
        """Take in a request that was answered.

        Args:
            total: Seconds from its arrival to its answer.
            queue: Seconds that it waited for its run.
        """
        with self._lock:
            self._now.inference_count += rows
            self._now.success.add(total)
            self._now.queue.add(queue)
            _add(self._now, times)

    def failed(self, total: float, error: Exception) -> None:
        """Take in a request that was not answered, after ``total`` seconds."""
        with self._lock:
            self._now.fail.add(total)
            self._now.blameless += isinstance(error, BusyError | DeadlineError | InvalidInputError)

    def waited(self, wait: Wait) -> None:
        """Take in what a client waited for."""
        with self._lock:
            self._waits.setdefault(wait.alike, Counter())[wait.step] += 1

    def waits(self) -> Histograms:
        """Return what was waited for, and how long."""
        with self._lock:
            return {alike: Counter(steps) for alike, steps in self._waits.items()}

    def snapshot(self) -> Snapshot:
        """Return what has been counted."""
        with self._lock:
            return copy.deepcopy(self._now)


def _add(counts: Snapshot | BatchStatistics, times: RunTimes) -> None:
    counts.compute_input.add(times.compute_input)
    counts.compute_infer.add(times.compute_infer)
    counts.compute_output.add(times.compute_output)
