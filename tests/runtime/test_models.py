"""What a server serves: models come and go, and never take more memory than there is."""

import dataclasses
import shutil
import threading
import time

import numpy as np
import pytest
from outpost_runtime.budget import (
    MemoryBudget,
    adapter_graph_bytes,
    expected_bytes,
    trial_bytes,
)
from outpost_runtime.bundle import read_bundle
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    ExecutionError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from outpost_runtime.model_table import State
from outpost_runtime.models import Models
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.store import Store
from outpost_runtime.tensor.engine import TensorLimits
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.request import Sampling, TextRequest

from tests.support.answers import Gate
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER

_SETTINGS = ModelSettings(threads=1, text=TextLimits(memory_bytes=8 << 20))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for bundle in (DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS):
        store.add(bundle)
    return store


@pytest.fixture
def models(store):
    models = Models(store, lambda _: _SETTINGS)
    yield models
    models.close()


def _states(models):
    return {entry.name: (entry.state, entry.reason) for entry in models.index()}


def _feeds(model):
    return {spec.name: np.ones((1, 3), np.int64) for spec in model.engine.inputs}


def _version_two(folder):
    other = folder / "version-two"
    shutil.copytree(CLASSIFIER, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    return other


def test_nothing_is_served_before_it_is_loaded(models):
    assert list(models) == []
    assert {state for state, _ in _states(models).values()} == {State.UNAVAILABLE}
    with pytest.raises(NotFoundError):
        models.get("tiny-classifier")


def test_everything_is_loaded_with_adapters_after_their_base(models):
    models.load_all()
    assert set(_states(models).values()) == {(State.READY, "")}
    assert models.complete
    assert models.text("tiny-adapter-one", "")[1].adapter.name == "tiny-adapter-one"


def test_a_damaged_bundle_is_not_served_and_says_why(models, store):
    path = store.bundle(store.slot("tiny-classifier").active).folder / "model.onnx.data"
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    models.load_all()
    state, reason = _states(models)["tiny-classifier"]
    assert state is State.UNAVAILABLE
    assert "model.onnx.data" in reason
    assert not models.complete
    assert models.get("tiny-embedder")


def test_an_unloaded_model_is_gone_and_can_come_back(models):
    models.load_all()
    models.unload("tiny-classifier")
    assert _states(models)["tiny-classifier"] == (State.UNAVAILABLE, "unloaded")
    assert models.complete
    with pytest.raises(NotFoundError):
        models.get("tiny-classifier")
    with pytest.raises(NotFoundError):
        models.unload("tiny-classifier")
    models.load("tiny-classifier")
    assert _states(models)["tiny-classifier"] == (State.READY, "")


def test_unloading_answers_what_has_begun(models):
    models.load("tiny-classifier")
    model = models.get("tiny-classifier")
    futures = [model.engine.submit(_feeds(model)) for _ in range(20)]
    models.unload("tiny-classifier")
    assert all(future.result(0) for future in futures)
    with pytest.raises(UnavailableError):
        model.engine.submit(_feeds(model))


def test_a_new_version_takes_the_place_of_the_old_one_without_a_gap(models, store, tmp_path):
    models.load("tiny-classifier")
    old = models.get("tiny-classifier")
    misses = []
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            model = models.get("tiny-classifier")
            try:
                model.engine.submit(_feeds(model)).result(20)
            except UnavailableError:
                if models.get("tiny-classifier") is model:
                    misses.append(model)

    asking = threading.Thread(target=ask)
    asking.start()
    store.add(_version_two(tmp_path))
    models.load("tiny-classifier")
    stop.set()
    asking.join()
    assert models.get("tiny-classifier") is not old
    assert models.get("tiny-classifier").bundle.manifest.version == "2"
    assert misses == []


def test_what_is_served_already_is_not_opened_again(models):
    models.load("tiny-classifier")
    model = models.get("tiny-classifier")
    models.load("tiny-classifier")
    assert models.get("tiny-classifier") is model


def test_an_adapter_is_unloaded_and_loaded_like_a_model(models):
    models.load_all()
    models.unload("tiny-adapter-one")
    assert models.get("tiny-decoder").adapters.names() == ["tiny-adapter-two"]
    models.load("tiny-adapter-one")
    assert len(models.get("tiny-decoder").adapters.names()) == 2
    models.unload("tiny-decoder")
    with pytest.raises(BundleError, match="not served"):
        models.load("tiny-adapter-one")


def test_an_adapter_that_is_loaded_already_takes_no_second_place(store):
    text = TextLimits(memory_bytes=8 << 20, adapters=2)
    models = Models(store, lambda _: ModelSettings(threads=1, text=text))
    models.load_all()
    loaded = models.text("tiny-adapter-one", "")[1]
    models.load("tiny-adapter-one")
    assert models.text("tiny-adapter-one", "")[1] is loaded
    assert models.complete
    models.close()


def _budget_for(*bundles):
    return MemoryBudget(sum(expected_bytes(read_bundle(b), _SETTINGS) for b in bundles))


def test_a_load_that_does_not_fit_is_refused_before_anything_is_opened(store, monkeypatch):
    models = Models(store, lambda _: _SETTINGS, budget=_budget_for(CLASSIFIER))
    models.load("tiny-classifier")
    monkeypatch.setattr("outpost_runtime.models.open_model", lambda *_: pytest.fail("was opened"))
    with pytest.raises(BusyError, match="MiB are left"):
        models.load("tiny-embedder")
    assert _states(models)["tiny-embedder"][0] is State.UNAVAILABLE
    assert models.get("tiny-classifier")
    models.close()


def test_the_longest_idle_model_makes_room_where_that_is_wanted(store):
    budget = _budget_for(CLASSIFIER, DECODER)
    models = Models(store, lambda _: _SETTINGS, budget=budget, evict=True)
    models.load("tiny-classifier")
    models.load("tiny-embedder")
    models.touch("tiny-classifier")
    models.load("tiny-decoder")
    states = _states(models)
    assert states["tiny-embedder"] == (
        State.UNAVAILABLE,
        "unloaded to make room for 'tiny-decoder'",
    )
    assert states["tiny-classifier"] == states["tiny-decoder"] == (State.READY, "")
    models.close()


def test_a_busy_model_does_not_make_room(store):
    models = Models(store, lambda _: _SETTINGS, budget=_budget_for(EMBEDDER), evict=True)
    models.load("tiny-classifier")
    model = models.get("tiny-classifier")
    go = threading.Event()
    run = model.engine._session.run

    def slow(feeds):
        go.wait(20)
        return run(feeds)

    model.engine._session.run = slow
    future = model.engine.submit(_feeds(model))
    with pytest.raises(BusyError):
        models.load("tiny-embedder")
    go.set()
    assert future.result(20)
    until = time.monotonic() + 20
    while model.engine.busy and time.monotonic() < until:
        time.sleep(0.01)
    models.load("tiny-embedder")
    models.close()


def test_nobody_makes_room_for_what_cannot_come(store):
    models = Models(store, lambda _: _SETTINGS, budget=_budget_for(CLASSIFIER), evict=True)
    models.load("tiny-classifier")
    with pytest.raises(BusyError):
        models.load("tiny-decoder")
    assert models.get("tiny-classifier")
    models.close()


def test_a_new_version_that_cannot_be_opened_leaves_the_old_one_serving(
    store, tmp_path, monkeypatch
):
    budget = _budget_for(CLASSIFIER)  # so that the old one has to go first
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    store.add(_version_two(tmp_path))
    opened = []

    def opening(bundle, *more):
        opened.append(bundle.manifest.version)
        if bundle.manifest.version == "2":
            raise BundleError("no")
        return open_model(bundle, *more)

    monkeypatch.setattr("outpost_runtime.models.open_model", opening)
    with pytest.raises(BundleError):
        models.load("tiny-classifier")
    assert opened == ["2", "1"]
    assert models.get("tiny-classifier").bundle.manifest.version == "1"
    assert budget.free == 0
    assert not models.complete
    models.close()


def test_unloading_an_adapter_takes_no_thread_while_its_answers_run(models):
    models.load_all()
    model, shelved = models.text("tiny-adapter-one", "")
    gate = Gate()
    request = TextRequest(
        prompt_ids=(5, 6), sampling=Sampling(), max_new_tokens=4, adapter=shelved.adapter
    )
    model.engine.submit(request, gate)
    gate.events.get(timeout=20)
    ended = models.unload("tiny-adapter-one")
    assert not ended.done()
    assert _states(models)["tiny-adapter-one"][0] is State.UNLOADING
    assert model.adapters.names() == ["tiny-adapter-two"]
    gate.go(100)
    ended.result(timeout=20)
    assert _states(models)["tiny-adapter-one"] == (State.UNAVAILABLE, "unloaded")


def test_an_adapter_that_is_loaded_again_while_it_is_unloaded_stays(models):
    models.load_all()
    model, shelved = models.text("tiny-adapter-one", "")
    gate = Gate()
    request = TextRequest(
        prompt_ids=(5, 6), sampling=Sampling(), max_new_tokens=4, adapter=shelved.adapter
    )
    model.engine.submit(request, gate)
    gate.events.get(timeout=20)
    ended = models.unload("tiny-adapter-one")
    gate.go(100)
    models.load("tiny-adapter-one")
    ended.result(timeout=20)
    assert _states(models)["tiny-adapter-one"] == (State.READY, "")


def test_a_text_model_that_cannot_run_is_not_served_and_leaves_nothing_behind(models, monkeypatch):
    def fail(_decoder, *_, **__):
        raise ExecutionError("no")

    monkeypatch.setattr("outpost_runtime.text.decoder.Decoder.decode", fail)
    with pytest.raises(ExecutionError):
        models.load("tiny-decoder")
    assert _states(models)["tiny-decoder"][0] is State.UNAVAILABLE
    assert "text-engine" not in [thread.name for thread in threading.enumerate()]


def test_a_base_takes_its_adapters_along(models):
    models.load_all()
    models.unload("tiny-decoder")
    assert _states(models)["tiny-adapter-one"] == (
        State.UNAVAILABLE,
        "unloaded with 'tiny-decoder'",
    )


def test_what_has_been_closed_loads_nothing(store):
    models = Models(store, lambda _: _SETTINGS)
    models.close()
    with pytest.raises(UnavailableError):
        models.load("tiny-classifier")


def test_who_only_looks_does_not_keep_a_model(store):
    budget = _budget_for(CLASSIFIER, DECODER)
    models = Models(store, lambda _: _SETTINGS, budget=budget, evict=True)
    models.load("tiny-embedder")
    models.load("tiny-classifier")
    models.get("tiny-embedder")  # as a probe does
    models.load("tiny-decoder")
    assert _states(models)["tiny-embedder"][0] is State.UNAVAILABLE
    assert _states(models)["tiny-classifier"][0] is State.READY
    models.close()


def test_unloading_gives_its_share_of_the_budget_back(store):
    budget = _budget_for(CLASSIFIER)
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    assert budget.free == 0
    models.unload("tiny-classifier")
    assert budget.free == budget.total
    models.close()


def test_one_model_that_fits_only_once_is_replaced_one_after_the_other(store, tmp_path):
    budget = _budget_for(CLASSIFIER)
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    store.add(_version_two(tmp_path))
    models.load("tiny-classifier")
    assert models.get("tiny-classifier").bundle.manifest.version == "2"
    assert budget.free == 0
    models.close()


_LARGE = 500 << 20


def test_a_model_that_reads_its_embedding_by_rows_has_its_weights_once():
    bundle = read_bundle(DECODER)
    made = bundle.manifest.provenance
    made = dataclasses.replace(made, recipe=made.recipe | {"head": "screened"})
    screened = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, provenance=made)
    )
    weights = sum(e.size for name, e in bundle.manifest.files.items() if ".onnx" in name)
    saved = expected_bytes(bundle, _SETTINGS) - expected_bytes(screened, _SETTINGS)
    assert saved == pytest.approx(1.1 * weights, rel=0.01)


def test_a_small_model_has_what_it_can_use_set_apart_and_not_what_it_may():
    bundle = read_bundle(DECODER)
    allowed = [ModelSettings(text=TextLimits(memory_bytes=most)) for most in (1, 1 << 20, 1 << 30)]
    least, some, most = (expected_bytes(bundle, settings) for settings in allowed)
    assert some - least == (1 << 20) - 1
    model = open_model(bundle, allowed[-1])
    used = model.engine._runner._decoder.memory.bytes
    model.close()
    assert used <= most - least < 2 * used


def test_a_base_that_an_adapter_is_tried_on_has_room_for_a_sequence():
    base = read_bundle(DECODER)
    weights = sum(e.size for name, e in base.manifest.files.items() if ".onnx" in name)
    beside = trial_bytes(base, _SETTINGS) - adapter_graph_bytes(base, _SETTINGS)
    assert beside > base.manifest.memory_bytes - weights > 0


def _runs_take(monkeypatch, run_bytes):
    monkeypatch.setattr("outpost_runtime.opening.measure_run", lambda *_: run_bytes)


def test_what_the_largest_run_takes_is_set_apart_and_known_at_the_next_load(store, monkeypatch):
    _runs_take(monkeypatch, _LARGE)
    budget = MemoryBudget(2 << 30)
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    expected = expected_bytes(read_bundle(CLASSIFIER), _SETTINGS, _LARGE)
    assert budget.total - budget.free == expected > _LARGE
    models.close()
    assert budget.free == budget.total
    monkeypatch.setattr("outpost_runtime.opening.measure_run", lambda *_: pytest.fail("again"))
    again = Models(store, lambda _: _SETTINGS, budget=budget)
    again.load("tiny-classifier")
    assert budget.total - budget.free == expected
    again.close()


def test_a_model_whose_runs_do_not_fit_is_refused_and_never_opened_again(store, monkeypatch):
    _runs_take(monkeypatch, _LARGE)
    budget = MemoryBudget(200 << 20)
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    with pytest.raises(BusyError, match="MiB are left"):
        models.load("tiny-classifier")
    assert budget.free == budget.total
    monkeypatch.setattr("outpost_runtime.models.open_model", lambda *_: pytest.fail("was opened"))
    with pytest.raises(BusyError):
        models.load("tiny-classifier")
    models.close()


def test_inputs_of_open_sizes_take_no_memory_that_is_not_there(store, tmp_path, monkeypatch):
    other = _version_two(tmp_path)
    manifest = other / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"max_sequence": 128', '"max_sequence": null'))
    assert manifest.read_text() != text
    store.add(other)
    _runs_take(monkeypatch, _LARGE)  # of the golden inputs' 46 columns
    needed = expected_bytes(read_bundle(other), _SETTINGS, _LARGE)
    budget = MemoryBudget(needed + (99 << 20))
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    engine = models.get("tiny-classifier").engine

    def ask(columns):
        feeds = {spec.name: np.ones((1, columns), np.int64) for spec in engine.inputs}
        return engine.submit(feeds).result(20)

    assert ask(46)
    assert budget.free == 99 << 20
    with pytest.raises(
        InvalidInputError,
        match="expected to take 1000 MiB; of 'tiny-classifier' a run may take 500",
    ):
        ask(92)
    for _ in range(2):
        assert ask(50)  # what has been taken once is set apart
    assert budget.free == (99 << 20) - (_LARGE * 50 // 46 - _LARGE)
    with pytest.raises(InvalidInputError, match=r"may take 543 MiB, .* 55 MiB are left"):
        ask(56)
    models.unload("tiny-classifier")
    assert budget.free == budget.total
    models.close()


def test_runs_at_the_same_time_take_their_memory_each(store, monkeypatch):
    _runs_take(monkeypatch, _LARGE)
    settings = ModelSettings(threads=1, tensor=TensorLimits(concurrency=2))
    budget = MemoryBudget(4 << 30)
    models = Models(store, lambda _: settings, budget=budget)
    models.load("tiny-classifier")
    assert budget.total - budget.free > 2 * _LARGE
    models.close()


def test_a_new_version_whose_runs_do_not_fit_beside_the_old_one_takes_its_place(
    store, tmp_path, monkeypatch
):
    _runs_take(monkeypatch, _LARGE)
    budget = MemoryBudget(expected_bytes(read_bundle(CLASSIFIER), _SETTINGS, _LARGE) + (99 << 20))
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-classifier")
    store.add(_version_two(tmp_path))
    models.load("tiny-classifier")
    assert models.get("tiny-classifier").bundle.manifest.version == "2"
    assert budget.free == 99 << 20
    models.close()


def test_the_first_adapter_needs_room_for_its_bases_second_graph(store):
    budget = _budget_for(DECODER)
    models = Models(store, lambda _: _SETTINGS, budget=budget)
    models.load("tiny-decoder")
    with pytest.raises(BusyError):
        models.load("tiny-adapter-one")
    assert models.get("tiny-decoder").adapters.names() == []
    budget.total += adapter_graph_bytes(read_bundle(DECODER), _SETTINGS)
    models.load("tiny-adapter-one")
    models.load("tiny-adapter-two")  # it is there now
    assert budget.free == 0
    models.unload("tiny-decoder")
    assert budget.free == budget.total
    models.close()


def test_a_bundle_that_leaves_the_store_takes_its_measurement_along(store, models, tmp_path):
    digest = store.slot("tiny-classifier").active
    models.load("tiny-classifier")
    measured = store.folder / "measured" / f"{digest}.json"
    assert measured.is_file()
    second = _version_two(tmp_path)
    store.add(second)
    assert measured.is_file()  # the previous one may be wanted back
    manifest = second / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "2"', '"version": "3"'))
    store.add(second)
    assert not measured.exists()
