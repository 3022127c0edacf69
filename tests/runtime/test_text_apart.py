"""A text model in a process of its own: the same tokens, and a crash that only it notices."""

import contextlib
import dataclasses
import errno
import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from outpost_runtime import footprint, opening
from outpost_runtime.budget import MemoryBudget, adapter_graph_bytes, expected_bytes
from outpost_runtime.bundle import read_bundle
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    ConfigurationError,
    ExecutionError,
    UnavailableError,
)
from outpost_runtime.golden import (
    check,
    check_adapter,
    check_loaded_adapter,
    check_opened_adapter,
    opened_for_adapter,
)
from outpost_runtime.interface import LinearShape
from outpost_runtime.models import Models
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.sessions.process import ProcessSession
from outpost_runtime.store import Store
from outpost_runtime.tensor.engine import TensorLimits
from outpost_runtime.text import model as text_model
from outpost_runtime.text import prefix_file
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.request import FailEvent, FinishEvent, Sampling, TextRequest
from outpost_runtime.update import gate
from outpost_runtime.update.gate import GateLimits, bytes_in_use, examine, examine_adapter

from tests.support.answers import Gate, begin, events_of, token_ids
from tests.support.fixtures import ADAPTERS, DECODER
from tests.support.processes import children_of, private_bytes_of
from tests.support.sealed import sealed

BASE = read_bundle(DECODER)
ONE, TWO = (read_bundle(folder) for folder in ADAPTERS)
LIMITS = TextLimits(streams=3, memory_bytes=8 << 20, adapters=2)
HERE = ModelSettings(threads=1, text=LIMITS)
APART = dataclasses.replace(HERE, apart=True)
PROMPT = "The gate of press two does not close, whatever we do."


@pytest.fixture
def model():
    model = open_model(BASE, APART)
    yield model
    model.close()


def _request(model, prompt=PROMPT, adapter=None, **changes):
    shelved = model.adapters.get(adapter.manifest.name) if adapter else None
    return TextRequest(
        prompt_ids=model.prompt_ids(prompt),
        sampling=Sampling(),
        max_new_tokens=changes.pop("max_new_tokens", 24),
        adapter=shelved and shelved.adapter,
        **changes,
    )


def _answers(model):
    """What a model answers alone, and in batches in which rows have an adapter, another, none."""
    model.load_adapter(ONE)
    model.load_adapter(TWO)
    asked = [(None, PROMPT), (ONE, PROMPT), (TWO, "Short."), (None, PROMPT * 2), (ONE, "Grüße")]
    alone = [token_ids(events_of(model.engine, _request(model, p, a))) for a, p in asked]
    waiting = [begin(model.engine, _request(model, p, a)) for a, p in asked]
    return alone, [token_ids(wait()) for wait in waiting]


def _until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def _kill(session):
    before = session.process_id
    os.kill(before, signal.SIGKILL)
    return lambda: session.process_id not in (None, before)


@pytest.mark.parametrize("base", [BASE, sealed(DECODER)], ids=["plain", "sealed"])
def test_it_gives_the_tokens_that_it_gives_in_this_process(base):
    here, apart = open_model(BASE, HERE), open_model(base, APART)
    assert _answers(apart) == _answers(here)
    assert check(apart) == check(here)
    for adapter in (ONE, TWO):
        name = adapter.manifest.name
        assert check_loaded_adapter(apart, name) == check_loaded_adapter(here, name)
    here.close()
    apart.close()


def test_a_process_that_is_killed_fails_the_answer_that_it_was_making(model):
    gate = Gate()
    model.engine.submit(_request(model), gate)
    for _ in range(3):
        gate.events.get(timeout=20)
        gate.go()
    os.kill(model._session.process_id, signal.SIGKILL)
    gate.go(100)
    while not isinstance(event := gate.events.get(timeout=20), FailEvent | FinishEvent):
        pass
    assert isinstance(event, FailEvent)
    assert isinstance(event.error, UnavailableError)


def test_it_comes_back_with_what_was_remembered(model):
    first = events_of(model.engine, _request(model))
    back = _kill(model._session)
    refused = events_of(model.engine, _request(model))
    assert isinstance(refused[-1].error, UnavailableError)
    _until(back)
    again = events_of(model.engine, _request(model))
    assert token_ids(again) == token_ids(first)
    assert again[-1].cached_tokens > 16


def test_the_death_of_the_process_for_adapters_is_noticed_by_their_answers_only(model):
    model.load_adapter(ONE)
    wanted = token_ids(events_of(model.engine, _request(model)))
    with_adapter = token_ids(events_of(model.engine, _request(model, adapter=ONE)))
    plain, adapted = Gate(), Gate()
    model.engine.submit(_request(model), plain)
    model.engine.submit(_request(model, adapter=ONE), adapted)
    plain.go(4)
    adapted.go(3)  # both are in the batch
    for _ in range(3):
        adapted.events.get(timeout=20)
    back = _kill(model.adapters._session._session)
    plain.go(100)
    adapted.go(100)
    assert token_ids(_all(plain)) == wanted
    assert isinstance(_all(adapted)[-1].error, UnavailableError)
    _until(back)
    assert token_ids(events_of(model.engine, _request(model, adapter=ONE))) == with_adapter


def _all(gate):
    events = [gate.events.get(timeout=20)]
    while not isinstance(events[-1], FailEvent | FinishEvent):
        events.append(gate.events.get(timeout=20))
    return events


def test_closing_ends_a_run_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(text_model, "LAST_RUN_SECONDS", 0.5)
    limits = dataclasses.replace(LIMITS, prefix_folder=tmp_path)  # which are saved while it closes
    model = open_model(BASE, dataclasses.replace(APART, text=limits))
    number = model._session.process_id
    os.kill(number, signal.SIGSTOP)
    wait = begin(model.engine, _request(model))
    closing = threading.Thread(target=model.close, daemon=True)
    closing.start()
    assert isinstance(wait()[-1].error, UnavailableError)
    closing.join(20)
    assert not closing.is_alive()
    assert not Path(f"/proc/{number}").exists()


def _open_files():
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((descriptor.name, str(descriptor.readlink())))
    return found


def test_closing_leaves_no_process_no_descriptor_and_no_memory():
    def left():
        gc.collect()
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = {line for line in lines if "memfd:" in line}
        return _open_files(), mapped, set(children_of(os.getpid()))

    before = left()
    model = open_model(BASE, APART)
    model.load_adapter(ONE)
    numbers = {model._session.process_id, model.adapters._session._session.process_id}
    assert numbers <= set(children_of(os.getpid()))
    events_of(model.engine, _request(model, adapter=ONE))
    model.close()
    del model
    # Nothing new: of what an earlier test has left to the collector, some may be gone meanwhile.
    assert [now - then for now, then in zip(left(), before, strict=True)] == [set()] * 3


def test_a_model_that_cannot_be_opened_leaves_no_process():
    before = children_of(os.getpid())
    with pytest.raises(ConfigurationError):
        open_model(BASE, dataclasses.replace(APART, text=TextLimits(memory_bytes=1 << 10)))
    assert children_of(os.getpid()) == before


def test_a_graph_for_adapters_that_is_none_leaves_no_process():
    interface = BASE.manifest.interface
    linears = interface.adapters.linears | {
        "layers.99.mlp.up_proj": LinearShape(inputs=8, outputs=8)
    }
    support = dataclasses.replace(interface.adapters, linears=linears)
    manifest = dataclasses.replace(
        BASE.manifest, interface=dataclasses.replace(interface, adapters=support)
    )
    model = open_model(dataclasses.replace(BASE, manifest=manifest), APART)
    before = children_of(os.getpid())
    with pytest.raises(BundleError, match=r"layers\.99"):
        model.load_adapter(ONE)
    assert children_of(os.getpid()) == before
    assert not model.adapters.is_open
    model.close()


def test_a_model_without_memory_for_what_it_remembers_leaves_no_process(tmp_path, monkeypatch):
    def load(*_):
        raise MemoryError

    monkeypatch.setattr(prefix_file, "load", load)
    limits = dataclasses.replace(LIMITS, prefix_folder=tmp_path)
    processes, threads = children_of(os.getpid()), set(threading.enumerate())
    with pytest.raises(BusyError):
        open_model(BASE, dataclasses.replace(APART, text=limits))
    assert children_of(os.getpid()) == processes
    assert set(threading.enumerate()) <= threads  # another test's may have ended meanwhile


@pytest.fixture
def deadly(monkeypatch):
    """Text graphs that end their process at the first run, as one that breaks ONNX Runtime."""
    decode = Decoder.decode

    def kill_and_decode(decoder, *about):
        os.kill(decoder._session.process_id, signal.SIGKILL)
        return decode(decoder, *about)

    return lambda: monkeypatch.setattr(Decoder, "decode", kill_and_decode)


def test_a_bundle_that_ends_its_process_while_it_warms_up_is_at_fault(deadly):
    before = children_of(os.getpid())
    deadly()
    with pytest.raises(BundleError, match="cannot run"):
        open_model(BASE, APART)
    assert children_of(os.getpid()) == before


def test_a_candidate_that_ends_its_process_at_the_gate_is_at_fault(model, deadly):
    deadly()
    with pytest.raises(BundleError, match="cannot run its golden inputs"):
        examine(model, [], expected_bytes=1 << 30, bytes_before=bytes_in_use())


def test_an_adapter_is_tried_in_a_process_of_its_own():
    before = children_of(os.getpid())
    with opened_for_adapter(ONE, BASE, APART) as decoder:
        assert len(children_of(os.getpid())) == len(before) + 1
        figures = check_opened_adapter(decoder, ONE)
    assert children_of(os.getpid()) == before
    assert figures == check_adapter(ONE, BASE)


def test_an_adapter_that_ends_the_process_in_which_it_is_tried_is_at_fault(monkeypatch):
    before, bind = children_of(os.getpid()), ProcessSession.bind

    def kill_and_bind(session, *about):
        os.kill(session.process_id, signal.SIGKILL)
        return bind(session, *about)

    monkeypatch.setattr(ProcessSession, "bind", kill_and_bind)
    with pytest.raises(BundleError, match="cannot run its golden inputs"):
        examine_adapter(ONE, BASE, APART)
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    ("failure", "blamed"),
    [
        (lambda: OSError(errno.ENOMEM, "no memory"), BusyError),
        (lambda: OSError(errno.EIO, "no disk"), UnavailableError),
        (lambda: ExecutionError("The process does not speak as it should."), UnavailableError),
    ],
)
def test_an_adapter_is_not_at_fault_where_its_base_cannot_be_opened(monkeypatch, failure, blamed):
    def fail(*_, **__):
        raise failure()

    monkeypatch.setattr(opening, "ProcessSession", fail)
    with pytest.raises(blamed):
        examine_adapter(ONE, BASE, APART)


def test_an_adapter_is_not_at_fault_where_there_is_no_memory_for_its_weights(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(opening.BoundMemory, "zeros", fail)
    with pytest.raises(BusyError, match="There is no memory for"):
        examine_adapter(ONE, BASE, APART)


@pytest.mark.parametrize("stopping", [True, False])
def test_the_trial_of_an_adapter_ends_in_time_and_with_the_server(stopping):
    before, stop = children_of(os.getpid()), threading.Event()
    limits = GateLimits(seconds=60 if stopping else 0)
    if stopping:
        stop.set()
    with pytest.raises(UnavailableError if stopping else BundleError, match=r"stopping|in 0 s"):
        examine_adapter(ONE, BASE, APART, limits=limits, stop=stop)
    assert children_of(os.getpid()) == before


def test_what_a_candidate_s_process_takes_counts_at_the_gate(monkeypatch):
    monkeypatch.setattr(gate, "_TOLERATED", 0)
    before, here = bytes_in_use(), footprint.resident_bytes(os.getpid())
    model = open_model(BASE, APART)
    try:
        grown_here = footprint.resident_bytes(os.getpid()) - here
        with pytest.raises(BusyError, match="has taken"):
            examine(model, [], expected_bytes=grown_here + (8 << 20), bytes_before=before)
        examine(model, [], expected_bytes=1 << 30, bytes_before=before)
    finally:
        model.close()


def test_its_process_counts_and_counts_once_however_often_other_models_may_run_at_once():
    settings = dataclasses.replace(APART, tensor=TensorLimits(concurrency=4))
    assert (
        expected_bytes(BASE, settings) == expected_bytes(BASE, APART) > expected_bytes(BASE, HERE)
    )


def test_what_both_processes_take_is_set_apart_and_given_back(tmp_path):
    store = Store(tmp_path / "store")
    store.add(DECODER)
    store.add(ADAPTERS[0])
    models = Models(store, lambda _: APART, budget=MemoryBudget(1 << 30))
    models.load_all()
    budget = models._budget
    taken = budget.total - budget.free
    second = adapter_graph_bytes(BASE, APART)
    assert taken == expected_bytes(BASE, APART) + second
    model = models.get("tiny-decoder")
    numbers = model._session.process_id, model.adapters._session._session.process_id
    assert sum(map(private_bytes_of, numbers)) < taken
    del model
    models.unload("tiny-decoder").result()
    assert budget.free == budget.total
    _until(lambda: "memfd:bound" not in Path("/proc/self/maps").read_text())
    models.close()
