import threading

import numpy as np
import pytest
from outpost_runtime.errors import BusyError, ExecutionError, InvalidInputError, UnavailableError
from outpost_runtime.tensor.engine import TensorEngine, TensorLimits, TensorShape
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

    def run(self, feeds):
        self.entered.set()
        self.go.wait(20)
        self.runs += 1
        if np.isnan(feeds["x"]).any():
            raise ExecutionError("no")
        return {"y": feeds["x"] * 2}

    def close(self):
        self.closed = True


def _engine(session, *, max_batch=4, max_sequence=8, padded=False, **limits):
    shape = TensorShape(max_batch=max_batch, max_sequence=max_sequence, padded=padded)
    return TensorEngine(session, shape, TensorLimits(**limits))


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
