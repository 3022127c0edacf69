"""A model in a process of its own: it may die at any moment, and only its own requests notice."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.errors import BundleError, ExecutionError, InvalidInputError, UnavailableError
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.sessions import process
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.sessions.pool import open_pool
from outpost_runtime.sessions.process import FIRST_PAUSE, ProcessSession
from outpost_runtime.sessions.shared_tensors import SharedFile
from outpost_runtime.tensor.engine import TensorLimits

from tests.support.fixtures import CLASSIFIER

_GRAPH = CLASSIFIER / "model.onnx"


@pytest.fixture
def session():
    session = ProcessSession(_GRAPH, threads=1)
    yield session
    session.close()


def _feeds(rows=2, columns=5):
    rng = np.random.default_rng(rows * columns)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: rng.integers(0, 2, (rows, columns)) for name in names}


def _back(session, but=None):
    until = time.monotonic() + 30
    while session.process_id in (None, but) and time.monotonic() < until:
        time.sleep(0.02)
    return session.process_id


def test_it_gives_what_a_session_in_this_process_gives(session):
    here = OrtSession(_GRAPH, threads=1)
    assert (session.inputs, session.outputs) == (here.inputs, here.outputs)
    for rows, columns in ((1, 1), (32, 64), (3, 7), (16, 128)):
        feeds = _feeds(rows, columns)
        assert (session.run(feeds)["logits"] == here.run(feeds)["logits"]).all()
    here.close()


def test_a_wrong_request_is_refused_and_the_process_lives_on(session):
    before = session.process_id
    with pytest.raises(InvalidInputError):
        session.run({"input_ids": np.ones((1, 1), np.int64)})
    feeds = _feeds()
    feeds["input_ids"] = feeds["input_ids"] + 10**6  # no such token: the model itself fails
    with pytest.raises((ExecutionError, InvalidInputError)):
        session.run(feeds)
    assert session.run(_feeds())
    assert session.process_id == before


def test_a_killed_process_fails_its_own_requests_and_comes_back(session):
    first = session.process_id
    os.kill(first, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="started again"):
        session.run(_feeds())
    assert _back(session, but=first) != first
    assert session.run(_feeds())["logits"].shape == (2, 3)


def test_a_process_that_dies_again_comes_back_later_and_later(session):
    pauses = []
    for _ in range(2):
        os.kill(_back(session), signal.SIGKILL)
        began = time.monotonic()
        while session.process_id is not None:
            time.sleep(0.005)
        _back(session)
        pauses.append(time.monotonic() - began)
    assert pauses[0] >= FIRST_PAUSE
    assert pauses[1] >= 2 * FIRST_PAUSE


def test_no_process_is_left_behind():
    session = ProcessSession(_GRAPH, threads=1)
    number = session.process_id
    session.close()
    assert not os.path.exists(f"/proc/{number}")  # noqa: PTH110 - not a file of ours
    with pytest.raises(UnavailableError):
        session.run(_feeds())


def test_a_process_that_dies_while_it_is_closed_is_ended_once(session, monkeypatch):
    ended = []
    end = process._Worker.end
    monkeypatch.setattr(process._Worker, "end", lambda worker: (ended.append(worker), end(worker)))
    session._closing = _SlowEvent()  # whoever has looked takes his time
    os.kill(session.process_id, signal.SIGKILL)
    time.sleep(0.1)
    session.close()
    assert len(ended) == 1  # or descriptors were closed that are others' by now


class _SlowEvent(threading.Event):
    def is_set(self):
        answer = super().is_set()
        time.sleep(0.5)
        return answer


def test_closing_ends_a_run_that_hangs(session):
    os.kill(session.process_id, signal.SIGSTOP)
    ended = []

    def ask():
        with pytest.raises(UnavailableError):
            session.run(_feeds())
        ended.append(True)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    assert not ended
    session.close()
    asking.join(10)
    assert ended


def test_a_service_managers_signal_to_everybody_does_not_end_the_worker(session):
    before = session.process_id
    os.kill(before, signal.SIGTERM)
    time.sleep(0.1)
    assert session.run(_feeds())
    assert session.process_id == before


def test_what_lies_where_the_server_was_started_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    session = ProcessSession(_GRAPH, threads=1)
    assert session.run(_feeds())
    session.close()


def test_a_model_that_cannot_be_opened_says_why_at_once(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(BundleError, match="cannot open"):
        ProcessSession(path)


def test_an_engine_goes_on_when_the_process_is_back():
    model = open_model(read_bundle(CLASSIFIER), ModelSettings(threads=1, apart=True))
    feeds = _feeds()
    wanted = model.engine.submit(feeds).result(20)["logits"]
    os.kill(model.engine._session.process_id, signal.SIGKILL)
    refused = 0
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            got = model.engine.submit(feeds).result(20)["logits"]
        except UnavailableError:
            refused += 1
            time.sleep(0.02)
        else:
            if refused:
                break
    assert refused
    assert (got == wanted).all()
    model.close()


@pytest.fixture
def pool():
    pool = open_pool(lambda: ProcessSession(_GRAPH, threads=1), 2)
    yield pool
    pool.close()


def test_runs_at_the_same_time_are_in_processes_of_their_own(pool):
    feeds = _feeds()
    wanted = pool.run(feeds)["logits"]
    first = pool.process_id
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(pool.run, feeds)
        until = time.monotonic() + 20
        while len(pool._free) > 1 and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(3):
            assert (pool.run(feeds)["logits"] == wanted).all()
        assert not held.done()
        os.kill(first, signal.SIGCONT)
        assert (held.result(20)["logits"] == wanted).all()


def test_while_one_process_comes_back_the_others_take_the_runs(pool):
    feeds = _feeds()
    wanted = pool.run(feeds)["logits"]
    os.kill(pool.process_id, signal.SIGKILL)
    until = time.monotonic() + 20
    while pool.process_id is not None and time.monotonic() < until:
        time.sleep(0.005)
    for _ in range(5):
        assert (pool.run(feeds)["logits"] == wanted).all()


def test_a_pool_that_cannot_be_opened_leaves_no_process():
    opened = []

    def open_one():
        if opened:
            raise BundleError("no")
        opened.append(ProcessSession(_GRAPH, threads=1))
        return opened[0]

    with pytest.raises(BundleError):
        open_pool(open_one, 2)
    assert opened[0].process_id is None


def test_a_model_apart_runs_as_often_at_once_as_it_may():
    settings = ModelSettings(threads=1, apart=True, tensor=TensorLimits(concurrency=2))
    measured = []
    model = open_model(read_bundle(CLASSIFIER), settings, account=measured.append)
    feeds = _feeds()
    futures = [model.engine.submit(feeds) for _ in range(20)]
    first = futures[0].result(20)["logits"]
    assert all((future.result(20)["logits"] == first).all() for future in futures)
    assert len(measured) == 1
    model.close()


def test_a_shared_file_grows_and_cannot_be_made_smaller():
    file = SharedFile()
    small, large = {"a": np.arange(3)}, {"a": np.arange(1 << 18), "b": np.ones((), np.float16)}
    for tensors in (small, large, small):
        got = file.get(file.put(tensors))
        assert {name: a.tolist() for name, a in got.items()} == {
            name: a.tolist() for name, a in tensors.items()
        }
    with pytest.raises(PermissionError):
        os.ftruncate(file.descriptor, 8)
    file.close()
