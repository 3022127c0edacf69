"""Deadlines of requests to models that are busy: told when they pass, not when a run ends."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from outpost_runtime.errors import DeadlineError
from outpost_runtime.server.inference.core import Inference
from outpost_runtime.server.inference.message import InferRequest
from outpost_runtime.server.waiting import Crossing
from outpost_runtime.tensor.engine import TensorEngine, TensorShape
from outpost_runtime.tensors import TensorSpec


class _Slow:
    """A session whose runs wait until they may end."""

    def __init__(self):
        self.inputs = (TensorSpec(name="x", datatype="FP32", shape=(None,)),)
        self.outputs = self.inputs
        self.go = threading.Event()

    def run(self, feeds):
        assert self.go.wait(20)
        return feeds

    def close(self):
        pass


class _OneModel:
    def __init__(self, engine):
        self._model = SimpleNamespace(engine=engine)

    def find(self, _name):
        return self._model, "1"

    def touch(self, name):
        pass

    def is_between(self, _name):
        return False


def test_a_timeout_is_told_while_the_model_runs_for_somebody_else():
    session = _Slow()
    engine = TensorEngine(session, TensorShape(max_batch=0))
    running = engine.submit({"x": np.ones(1, np.float32)})

    async def ask():
        crossing = Crossing(asyncio.get_running_loop())
        inference = Inference(_OneModel(engine), generation=None, crossing=crossing)
        feeds, parameters = {"x": np.ones(1, np.float32)}, {"timeout": 50_000}
        request = InferRequest(model="m", version="", id="", feeds=feeds, parameters=parameters)
        with pytest.raises(DeadlineError):
            await inference.infer(request, None)
        inference.close()

    began = time.monotonic()
    asyncio.run(asyncio.wait_for(ask(), 10))
    assert time.monotonic() - began < 5
    assert not running.done()
    assert engine.busy == 1
    session.go.set()
    engine.close()
