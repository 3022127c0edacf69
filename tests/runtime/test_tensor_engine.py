import threading

import numpy as np
import pytest
from outpost_runtime.errors import BusyError, ExecutionError, InvalidInputError, UnavailableError
from outpost_runtime.tensor_engine import TensorEngine
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


def _engine(session, **changes):
    return TensorEngine(session, **({"max_batch": 4, "max_sequence": 8} | changes))


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


def test_cancelled_runs_do_not_make_room_for_an_unbounded_queue():
    session = Doubling()
    session.go.clear()
    engine = _engine(session, queue_limit=4)
    engine.submit(_feeds())
    assert session.entered.wait(20)  # from here on nothing leaves the queue
    refused = 0
    for _ in range(200):
        try:
            engine.submit(_feeds()).cancel()
        except BusyError:
            refused += 1
    session.go.set()
    engine.close()
    assert refused == 196
    assert session.runs == 1


def test_closing_drops_what_waits_and_refuses_what_comes():
    session = Doubling()
    session.go.clear()
    engine = _engine(session)
    futures = [engine.submit(_feeds()) for _ in range(5)]
    threading.Timer(0.2, session.go.set).start()
    engine.close()
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) >= 3
    with pytest.raises(UnavailableError):
        engine.submit(_feeds())
