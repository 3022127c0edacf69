import threading
import time

import numpy as np
import pytest
from outpost_runtime.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    UnavailableError,
)
from outpost_runtime.interface import StateSpec
from outpost_runtime.priority import LONGEST_HOLD, Precedence, Priority
from outpost_runtime.tensor.engine import TensorEngine, TensorLimits, TensorShape
from outpost_runtime.tensor.request import SequenceStep
from outpost_runtime.tensors import TensorSpec


class Doubling:
    """A session that doubles, and waits when it is told to."""

    def __init__(self):
        self.inputs = (TensorSpec(name="x", datatype="FP32", shape=(None, None)),)
        self.outputs = (TensorSpec(name="y", datatype="FP32", shape=(None, None)),)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.runs = 0
        self.inside = 0

    def run(self, feeds):
        self.inside += 1
        self.entered.set()
        self.go.wait(20)
        self.runs += 1
        if np.isnan(feeds["x"]).any():
            raise ExecutionError("no")
        return {"y": feeds["x"] * 2}

    def close(self):
        self.closed = True


def _engine(session, *, max_batch=4, max_sequence=8, padded=False, precedence=None, **limits):
    shape = TensorShape(max_batch=max_batch, max_sequence=max_sequence, padded=padded)
    return TensorEngine(session, shape, TensorLimits(**limits), precedence)


def _feeds(rows=1, columns=1, value=1.0):
    return {"x": np.full((rows, columns), value, np.float32)}


def test_a_run_gives_its_outputs_and_a_failed_one_its_error():
    engine = _engine(Doubling())
    assert engine.submit(_feeds()).result(20)["y"].tolist() == [[2.0]]
    with pytest.raises(ExecutionError):
        engine.submit(_feeds(value=np.nan)).result(20)
    assert engine.submit(_feeds()).result(20)
    engine.close()


@pytest.mark.parametrize(("rows", "columns"), [(5, 1), (1, 9), (0, 1), (1, 0)])
def test_inputs_that_are_too_large_or_empty_are_refused_at_the_door(rows, columns):
    engine = _engine(Doubling())
    with pytest.raises(InvalidInputError, match="this model takes 1 to"):
        engine.submit(_feeds(rows, columns))
    engine.close()


def test_cancelled_requests_leave_the_queue_at_once_and_are_not_run():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, queue=4)
    engine.submit(_feeds())
    assert session.entered.wait(20)  # from here on nothing runs
    for _ in range(200):
        engine.submit(_feeds()).cancel()
    kept = [engine.submit(_feeds()) for _ in range(4)]
    with pytest.raises(BusyError) as caught:
        engine.submit(_feeds())
    assert caught.value.retry_after > 0
    session.go.set()
    assert all(future.result(20) for future in kept)
    engine.close()
    assert session.runs == 2  # the first one, and the four together


def test_closing_fails_what_waits_and_refuses_what_comes():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1)
    futures = [engine.submit(_feeds()) for _ in range(5)]
    assert session.entered.wait(20)
    threading.Timer(0.2, session.go.set).start()
    engine.close()
    assert futures[0].result(0)
    for future in futures[1:]:
        with pytest.raises(UnavailableError):
            future.result(0)
    with pytest.raises(UnavailableError):
        engine.submit(_feeds())


def test_closing_gently_answers_what_waits_and_refuses_what_comes():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1)
    futures = [engine.submit(_feeds()) for _ in range(5)]
    threading.Timer(0.2, session.go.set).start()
    engine.close(drain_seconds=20)
    assert all(future.result(0) for future in futures)


def test_waiting_requests_share_a_run_and_get_their_own_rows():
    session = Doubling()
    session.go.clear()
    engine = _engine(session)
    first = engine.submit(_feeds(value=1))
    assert session.entered.wait(20)
    others = [engine.submit(_feeds(rows=rows, value=rows)) for rows in (1, 2)]
    session.go.set()
    assert first.result(20)["y"].tolist() == [[2.0]]
    assert [future.result(20)["y"].tolist() for future in others] == [[[2.0]], [[4.0], [4.0]]]
    engine.close()
    assert session.runs == 2
    statistics = engine.statistics.snapshot()
    assert (statistics.inference_count, statistics.execution_count) == (4, 2)
    assert {size: b.compute_infer.count for size, b in statistics.batches.items()} == {1: 1, 3: 1}
    assert statistics.success.count == statistics.queue.count == 3


def test_texts_of_different_lengths_are_filled_up_and_cut_back():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, padded=True)
    engine.submit(_feeds())
    assert session.entered.wait(20)
    futures = [engine.submit(_feeds(columns=columns, value=columns)) for columns in (8, 7)]
    session.go.set()
    assert [future.result(20)["y"].tolist() for future in futures] == [[[16.0] * 8], [[14.0] * 7]]
    engine.close()
    assert session.runs == 2


def test_one_wrong_request_does_not_spoil_the_run_that_it_shares():
    session = Doubling()
    session.go.clear()
    engine = _engine(session)
    engine.submit(_feeds())
    assert session.entered.wait(20)
    good, bad, other = (engine.submit(_feeds(value=value)) for value in (1, np.nan, 3))
    session.go.set()
    assert good.result(20)["y"].tolist() == [[2.0]]
    assert other.result(20)["y"].tolist() == [[6.0]]
    with pytest.raises(ExecutionError):
        bad.result(20)
    engine.close()
    assert engine.statistics.snapshot().fail.count == 1


def test_a_request_past_its_deadline_is_not_run():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1)
    engine.submit(_feeds())
    assert session.entered.wait(20)
    late = engine.submit(_feeds(), deadline=time.monotonic() - 1)
    session.go.set()
    with pytest.raises(DeadlineError):
        late.result(20)
    engine.close()
    assert session.runs == 1


def test_who_stops_waiting_at_a_deadline_counts_as_failed():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1, queue=1)
    soon = time.monotonic() + 0.1
    running = engine.submit(_feeds(), deadline=soon)
    assert session.entered.wait(20)
    waiting = engine.submit(_feeds(), deadline=soon)
    time.sleep(0.15)
    waiting.cancel()
    assert engine.busy == 1  # its place is free
    session.go.set()
    running.result(20)
    engine.close()
    counted = engine.statistics.snapshot()
    assert (counted.success.count, counted.fail.count, counted.blameless) == (0, 2, 2)
    assert session.runs == 1


def test_in_a_full_queue_the_late_and_the_youngest_batch_work_make_room():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1, queue=3)
    engine.submit(_feeds())
    assert session.entered.wait(20)
    jobs = [engine.submit(_feeds(value=n), priority=Priority.BATCH) for n in (1, 2)]
    late = engine.submit(_feeds(), deadline=time.monotonic() - 1)
    asked = [engine.submit(_feeds(value=n)) for n in (3, 4)]
    with pytest.raises(DeadlineError):
        late.result(0)
    with pytest.raises(BusyError) as caught:
        jobs[1].result(0)
    assert caught.value.retry_after > 0
    with pytest.raises(BusyError):
        engine.submit(_feeds(), priority=Priority.BATCH)
    session.go.set()
    answers = [future.result(20)["y"].item() for future in (jobs[0], *asked)]
    engine.close()
    assert answers == [2.0, 6.0, 8.0]
    counted = engine.statistics.snapshot()
    assert (counted.success.count, counted.fail.count, counted.blameless) == (4, 2, 2)


def test_several_runs_at_once_where_that_is_allowed():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, max_batch=1, concurrency=2)
    futures = [engine.submit(_feeds()) for _ in range(3)]
    until = time.monotonic() + 20
    while session.inside < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert session.inside == 2
    session.go.set()
    assert all(future.result(20) for future in futures)
    engine.close()


def test_batch_work_waits_between_runs_for_interactive_work_of_another_model():
    precedence = Precedence()
    slow, other = Doubling(), Doubling()
    slow.go.clear()
    interactive = _engine(slow, precedence=precedence)
    batch = _engine(other, max_batch=1, precedence=precedence)
    asked = interactive.submit(_feeds())
    assert slow.entered.wait(20)
    job = batch.submit(_feeds(), priority=Priority.BATCH)
    time.sleep(0.1)
    assert other.runs == 0
    slow.go.set()
    assert asked.result(20)
    assert job.result(0.9 * LONGEST_HOLD)
    interactive.close()
    batch.close()


def test_batch_work_is_not_held_back_for_ever():
    precedence = Precedence()
    slow, other = Doubling(), Doubling()
    slow.go.clear()
    interactive = _engine(slow, precedence=precedence)
    batch = _engine(other, precedence=precedence)
    interactive.submit(_feeds())
    began = time.monotonic()
    assert batch.submit(_feeds(), priority=Priority.BATCH).result(20)
    assert time.monotonic() - began >= LONGEST_HOLD
    slow.go.set()
    interactive.close()
    batch.close()


class Counting:
    """A session with a state: it adds up what it has seen."""

    def __init__(self):
        scalar = (1,)
        self.inputs = (
            TensorSpec(name="x", datatype="FP32", shape=scalar),
            TensorSpec(name="sum", datatype="FP32", shape=scalar),
        )
        self.outputs = (
            TensorSpec(name="y", datatype="FP32", shape=scalar),
            TensorSpec(name="new_sum", datatype="FP32", shape=scalar),
        )

    def run(self, feeds):
        if np.isnan(feeds["x"]).any():
            raise ExecutionError("no")
        total = feeds["x"] + feeds["sum"]
        return {"y": total, "new_sum": total}

    def close(self):
        pass


def test_sequences_keep_their_states_apart_and_a_failure_leaves_them_as_they_were():
    shape = TensorShape(max_batch=0, states=(StateSpec(input="sum", output="new_sum"),))
    engine = TensorEngine(Counting(), shape, TensorLimits(concurrency=2))
    assert [spec.name for spec in engine.inputs + engine.outputs] == ["x", "y"]

    def ask(value, **step):
        feeds = {"x": np.array([value], np.float32)}
        return engine.submit(feeds, sequence=SequenceStep(**step))

    futures = [ask(1, id=n, start=True) for n in (1, 2)]
    futures += [ask(10 * n, id=n) for n in (1, 2)]
    failed = ask(np.nan, id=1)
    last = ask(100, id=1, end=True)
    assert [f.result(20)["y"].tolist() for f in futures] == [[1], [1], [11], [21]]
    with pytest.raises(ExecutionError):
        failed.result(20)
    assert last.result(20)["y"].tolist() == [111]
    with pytest.raises(InvalidInputError, match="not known"):
        ask(1, id=1).result(20)
    with pytest.raises(InvalidInputError, match="sequence_id"):
        engine.submit({"x": np.ones(1, np.float32)})
    engine.close()
