"""A model's process that was taken over: what it answers harms its own requests only."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outpost_runtime.errors import ExecutionError, UnavailableError
from outpost_runtime.sessions import process
from outpost_runtime.sessions.graph import FileGraph
from outpost_runtime.sessions.process import ProcessSession

from tests.support.processes import children_of

_SUPPORT = Path(__file__).parents[1] / "support"
_GRAPH = Path("model.onnx")  # which nobody opens
_TENSOR = {"name": "x", "datatype": "FP32", "shape": [1]}
_OPENED = {"inputs": [_TENSOR], "outputs": [_TENSOR]}
_FEEDS = {"x": np.ones(1, np.float32)}
_TENSOR_AT = _TENSOR | {"offset": 0, "size": 4}
_NESTED = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def strange(monkeypatch):
    """Return a session whose process says what it is told to say."""
    opened = []
    monkeypatch.setattr(process, "worker_module", SimpleNamespace(__name__="strange_worker"))
    monkeypatch.setenv("PYTHONPATH", str(_SUPPORT))

    def session(opening, answer="{}", graph=_GRAPH):
        monkeypatch.setenv("OPENED", opening)
        monkeypatch.setenv("ANSWER", answer)
        opened.append(ProcessSession(graph))
        return opened[-1]

    yield session
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    "opening",
    [
        "5",
        _NESTED,
        "LONG",
        '{"error": [], "message": ""}',
        json.dumps({"inputs": [_TENSOR]}),
        json.dumps(_OPENED | {"inputs": [_TENSOR | {"datatype": "FP31"}]}),
        json.dumps(_OPENED | {"inputs": [_TENSOR | {"shape": ["1"]}]}),
    ],
    ids=lambda text: text[:50],
)
def test_one_that_does_not_say_what_it_has_opened_is_not_kept(strange, opening):
    before = children_of(os.getpid())
    with pytest.raises(ExecutionError, match="does not speak"):
        strange(opening)
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    "answer",
    [
        "5",
        "LONG",
        '{"error": "BundleError"}',
        '{"tensors": 5}',
        json.dumps({"tensors": [_TENSOR_AT]}),  # it has written nothing
        json.dumps({"tensors": [_TENSOR_AT | {"offset": "0"}]}),
    ],
    ids=lambda text: text[:50],
)
def test_one_that_gives_no_answer_is_ended_and_started_again(strange, answer):
    session = strange(json.dumps(_OPENED), answer)
    first = session.process_id
    with pytest.raises(UnavailableError):
        session.run(_FEEDS)
    _until(lambda: session.process_id not in (None, first))


def test_one_that_leaves_its_socket_to_another_keeps_nobody_waiting(strange):
    session = strange(json.dumps(_OPENED), "AWAY")
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        session.run(_FEEDS)
    assert time.monotonic() - began < 10


def test_what_keeps_one_from_being_started_again_once_does_not_keep_it_for_ever(strange):
    graph = _ForgetfulGraph()
    session = strange(json.dumps(_OPENED), "5", graph)
    first = session.process_id
    graph.memory_lacks = 1
    with pytest.raises(UnavailableError):
        session.run(_FEEDS)
    _until(lambda: session.process_id not in (None, first))
    assert graph.memory_lacks == 0


class _ForgetfulGraph(FileGraph):
    """A graph for which there is no memory, so many times."""

    def __init__(self):
        super().__init__(Path("model.onnx"))
        self.memory_lacks = 0

    def opened(self):
        if self.memory_lacks:
            self.memory_lacks -= 1
            raise MemoryError
        return super().opened()


def _until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()
