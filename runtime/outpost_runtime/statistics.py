"""What a model has done so far, in the terms of the Open Inference Protocol's statistics."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def plus(self, seconds: float, count: int = 1) -> "Duration":
        """Return it with something more."""
        return Duration(self.count + count, self.ns + round(seconds * 1e9))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStatistics:
    """Runs of one number of rows."""

    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A model's statistics at one moment.

    Attributes:
        last_inference: Milliseconds since 1970; 0 is never.
        inference_count: Rows of successful requests.
        execution_count: Runs.
        success: Successful requests, from their arrival to their answer.
        fail: The same of failed ones.
        queue: Of successful requests, as the three that follow.
        batches: By number of rows.
    """

    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
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
        self._batches: dict[int, BatchStatistics] = defaultdict(BatchStatistics)

    def ran(self, rows: int, times: RunTimes) -> None:
        """Take in a run."""
        with self._lock:
            batch = self._batches[rows]
            self._batches[rows] = BatchStatistics(
                compute_input=batch.compute_input.plus(times.compute_input),
                compute_infer=batch.compute_infer.plus(times.compute_infer),
                compute_output=batch.compute_output.plus(times.compute_output),
            )
            count = self._now.execution_count + 1
            self._now = replace(
                self._now, execution_count=count, last_inference=round(time.time() * 1000)
            )

    def succeeded(self, rows: int, *, total: float, queue: float, times: RunTimes) -> None:
        """Take in a request that was answered.

        Args:
            total: Seconds from its arrival to its answer.
            queue: Seconds that it waited for its run.
        """
        with self._lock:
            now = self._now
            self._now = replace(
                now,
                inference_count=now.inference_count + rows,
                success=now.success.plus(total),
                queue=now.queue.plus(queue),
                compute_input=now.compute_input.plus(times.compute_input),
                compute_infer=now.compute_infer.plus(times.compute_infer),
                compute_output=now.compute_output.plus(times.compute_output),
            )

    def failed(self, total: float) -> None:
        """Take in a request that was not answered, after ``total`` seconds."""
        with self._lock:
            self._now = replace(self._now, fail=self._now.fail.plus(total))

    def snapshot(self) -> Snapshot:
        """Return what has been counted."""
        with self._lock:
            return replace(self._now, batches=dict(self._batches))
