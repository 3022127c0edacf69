"""What both engines tell of how long their clients wait."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from outpost_runtime.errors import DeadlineError
from outpost_runtime.latency import Alike, Figure
from outpost_runtime.priority import Priority
from outpost_runtime.tensor.engine import TensorEngine, TensorLimits, TensorShape
from outpost_runtime.tensors import TensorSpec

from tests.support.answers import Gate, begin, events_of, new_engine, new_request

_FIRST, _TOKEN, _CALL = Figure.FIRST_TOKEN, Figure.TOKEN, Figure.CALL


def _alike(figure, *, beside=0, work):
    return Alike(figure=figure, beside=beside.bit_length(), work=work.bit_length())


def _kinds(engine):
    return Counter({alike: steps.total() for alike, steps in engine.statistics.waits().items()})


def test_an_answer_that_is_alone_is_told_with_its_own_lengths():
    engine = new_engine()
    events_of(engine, new_request([5] * 40, max_new_tokens=10))
    engine.close()
    assert _kinds(engine) == {
        _alike(_FIRST, work=40): 1,
        _alike(_TOKEN, beside=1, work=50): 1,
    }


def test_what_was_remembered_of_a_prompt_is_no_work():
    engine = new_engine(blocks=64)
    for _ in range(2):
        events_of(engine, new_request([5] * 40, max_new_tokens=1))
    engine.close()
    assert _kinds(engine) == {_alike(_FIRST, work=40): 1, _alike(_FIRST, work=8): 1}


def test_prompts_that_wait_and_answers_that_run_are_told_with_who_comes_later():
    gate = Gate()
    engine = new_engine(rows=3)
    engine.submit(new_request(max_new_tokens=200), gate)
    gate.events.get(timeout=20)  # it decodes, and waits in the sink
    longer = begin(engine, new_request([5] * 200, max_new_tokens=1))
    last = begin(engine, new_request([6] * 100, max_new_tokens=1))
    gate.go(1000)
    longer(), last()
    kinds = _kinds(engine)
    engine.close()
    assert kinds[_alike(_FIRST, beside=1, work=200)] == 1
    assert kinds[_alike(_FIRST, beside=1, work=300)] == 1


def test_who_gives_up_before_the_first_token_has_waited_too():
    gate = Gate()
    engine = new_engine()
    engine.submit(new_request(max_new_tokens=2), gate)
    gate.events.get(timeout=20)
    late = begin(engine, new_request([5] * 40, deadline=time.monotonic() + 0.05))
    time.sleep(0.1)
    gate.go(1000)
    assert isinstance(late()[-1].error, DeadlineError)
    (steps,) = [s for a, s in engine.statistics.waits().items() if a.work == (40).bit_length()]
    engine.close()
    assert 2 ** (min(steps) / 4) > 0.09


def test_who_lets_others_go_first_is_not_counted():
    engine = new_engine()
    events_of(engine, new_request(priority=Priority.BATCH, max_new_tokens=3))
    engine.close()
    assert _kinds(engine) == {}


class _Waiting:
    """A session that waits until it is told to go on."""

    def __init__(self):
        self.inputs = (TensorSpec(name="x", datatype="FP32", shape=(None, None)),)
        self.outputs = (TensorSpec(name="y", datatype="FP32", shape=(None, None)),)
        self.go, self.entered = threading.Event(), threading.Event()

    def run(self, feeds):
        self.entered.set()
        self.go.wait(20)
        return {"y": feeds["x"]}

    def close(self):
        pass


def test_calls_are_told_with_all_that_waits_or_runs():
    session = _Waiting()
    engine = TensorEngine(session, TensorShape(max_batch=1), TensorLimits())
    feeds = {"x": np.ones((1, 10), np.float32)}
    first = engine.submit(feeds)
    assert session.entered.wait(20)
    second = engine.submit(feeds)
    late = engine.submit({"x": np.ones((1, 44), np.float32)}, deadline=time.monotonic() - 1)
    engine.submit(feeds, priority=Priority.BATCH)
    session.go.set()
    assert first.result(20)
    assert second.result(20)
    with pytest.raises(DeadlineError):
        late.result(20)
    engine.close(drain_seconds=20)
    assert _kinds(engine) == {_alike(_CALL, work=w): 1 for w in (10, 20, 64)}


def test_what_has_been_answered_is_no_work_any_more():
    session = _Waiting()
    session.go.set()
    engine = TensorEngine(session, TensorShape(max_batch=1), TensorLimits())
    for _ in range(3):
        engine.submit({"x": np.ones((1, 10), np.float32)}).result(20)
    engine.close()
    assert _kinds(engine) == {_alike(_CALL, work=10): 3}
