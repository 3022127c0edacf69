"""Candidates pass the gate or are refused, under load, with adapters, and back again."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from outpost_runtime import golden
from outpost_runtime.budget import MemoryBudget, expected_bytes
from outpost_runtime.bundle import read_bundle
from outpost_runtime.errors import BusyError, DeadlineError, ExecutionError, OutpostError
from outpost_runtime.models import Models
from outpost_runtime.opening import ModelSettings
from outpost_runtime.store import Store
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.request import FinishEvent, Sampling, TextRequest
from outpost_runtime.update import activation
from outpost_runtime.update.keeper import Keeper, KeeperLimits
from outpost_runtime.update.probation import going_back
from outpost_runtime.update.verdict import ProbationLimits

from tests.support.candidates import (
    adapter_of,
    history,
    spoiled,
    version_of,
    wait_for_gate,
)
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER

_SETTINGS = ModelSettings(threads=1, text=TextLimits(memory_bytes=8 << 20))
_LIMITS = KeeperLimits(probation=ProbationLimits(seconds=60, enough=5))
_MODEL = "tiny-classifier"


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class _Box:
    """A store, what is served of it, and its keeper, whose rounds a test does."""

    def __init__(self, folder: Path, *bundles: Path, memory: int | None = None):
        self.store = Store(folder / "store")
        for bundle in bundles:
            self.store.add(bundle)
        self.memory = memory
        self.clock = _Clock()
        self.start()

    def start(self):
        self.models = Models(self.store, lambda _: _SETTINGS, budget=MemoryBudget(self.memory))
        self.keeper = Keeper(self.store, self.models, _LIMITS, monotonic=self.clock)
        self.keeper.begin()
        self.models.load_all()
        self.keeper.loaded()

    def stop(self):
        self.keeper.stop()
        self.models.close()

    def die(self):
        """End without a word, as a killed server does."""
        self.keeper._begun.clear()
        self.stop()

    def served(self, name):
        return self.models.get(name).bundle.digest


@pytest.fixture
def box(tmp_path):
    box = _Box(tmp_path, CLASSIFIER)
    yield box
    box.stop()


def _ask(box):
    model = box.models.get(_MODEL)
    feeds = {spec.name: np.ones((1, 3), np.int64) for spec in model.engine.inputs}
    return model.engine.submit(feeds).result()


def test_a_candidate_that_passes_is_served_on_probation_and_then_committed(box, tmp_path):
    old, new = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    slot = box.store.slot(_MODEL)
    assert box.served(_MODEL) == slot.active == new.digest
    assert (slot.previous, slot.candidate, slot.probation.starts) == (old, None, 1)
    box.clock.now += 61
    box.keeper.round()
    assert box.store.slot(_MODEL).probation is None
    assert [w for _, w in history(box.store)] == ["added", "staged", "activated", "committed"]


@pytest.mark.incident("a bundle that answers wrongly", where="gate")
def test_a_bad_candidate_is_refused_and_the_old_model_goes_on(box, tmp_path):
    old, bad = box.served(_MODEL), spoiled(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, bad)
    model = box.models.get(_MODEL)
    box.keeper.round()
    slot = box.store.slot(_MODEL)
    assert box.models.get(_MODEL) is model
    assert (slot.active, slot.candidate) == (old, None)
    assert "other answers than where the bundle was built" in slot.refusal(bad.digest).reason
    with pytest.raises(OutpostError, match="has failed here before"):
        wait_for_gate(box.store, bad)


@pytest.mark.incident("a damaged file", where="candidate, before the gate")
def test_a_damaged_candidate_is_refused(box, tmp_path):
    new = version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    path = box.store.folder / "bundles" / new.digest / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    box.keeper.round()
    assert "is not the file that the manifest lists" in box.store.slot(_MODEL).refused[0].reason


@pytest.mark.incident("a model that fails on live traffic", where="probation")
def test_a_model_that_fails_on_live_traffic_goes_back_without_a_human(box, tmp_path):
    old, new = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    for _ in range(6):
        box.models.get(_MODEL).engine.statistics.failed(0.1, ExecutionError("it broke"))
    box.keeper.round()  # judged
    box.keeper.round()  # followed
    slot = box.store.slot(_MODEL)
    assert box.served(_MODEL) == slot.active == old
    assert slot.refusal(new.digest).reason == "100% of 6 requests failed."


def _wait_for_answers(box, count, rows=1, callers=1, slowed=0.0):
    """Let callers ask the model that is served, whose runs take some seconds longer."""
    engine = box.models.get(_MODEL).engine
    run = engine._session.run
    feeds = {spec.name: np.ones((rows, 3), np.int64) for spec in engine.inputs}

    def slow(feeds):
        time.sleep(slowed)
        return run(feeds)

    engine._session.run = slow
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: engine.submit(feeds).result(), range(count)))


def _swap(box, tmp_path):
    old, new = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    assert box.served(_MODEL) == new.digest
    return old, new.digest


@pytest.mark.incident("a model that is slow on live traffic", where="probation")
def test_a_model_that_lets_clients_wait_longer_goes_back_without_a_human(box, tmp_path):
    _wait_for_answers(box, 6, slowed=0.01)
    old, new = _swap(box, tmp_path)
    _wait_for_answers(box, 6, slowed=0.1)
    box.keeper.round()
    assert box.store.slot(_MODEL).active == new  # it has only begun
    box.clock.now += 10
    box.keeper.round()  # judged
    box.keeper.round()  # followed
    assert box.served(_MODEL) == old
    reason = box.store.slot(_MODEL).refusal(new).reason
    assert re.fullmatch(r"A call takes \d+\.\d times as long as with the bundle before it.", reason)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"rows": 1, "callers": 1}, {"rows": 4, "callers": 12}),
        ({"rows": 4, "callers": 12}, {"rows": 1, "callers": 1}),
    ],
)
def test_an_equally_fast_model_under_other_load_is_committed(box, tmp_path, before, after):
    _wait_for_answers(box, 24, slowed=0.02, **before)
    _, new = _swap(box, tmp_path)
    _wait_for_answers(box, 24, slowed=0.02, **after)
    for seconds in (10, 60):
        box.clock.now += seconds
        box.keeper.round()
    slot = box.store.slot(_MODEL)
    assert (slot.active, slot.probation) == (new, None)


@pytest.mark.incident("a server that dies again and again", where="probation")
def test_servers_that_die_with_a_new_model_bring_the_previous_one_back(box, tmp_path):
    old, new = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    for _ in range(activation.MOST_STARTS - 1):
        box.die()
        box.start()
        assert box.served(_MODEL) == new.digest
    box.die()
    box.start()
    assert box.served(_MODEL) == old
    assert "have died" in box.store.slot(_MODEL).refusal(new.digest).reason


def test_a_restart_in_order_is_no_mark_against_a_new_model(box, tmp_path):
    new = version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    for _ in range(5):
        box.clock.now += 5
        box.stop()
        box.start()
        box.keeper.round()
    probation = box.store.slot(_MODEL).probation
    assert box.served(_MODEL) == new.digest
    assert (probation.starts, probation.watched) == (1, 25)


@pytest.mark.incident("a damaged file", where="active bundle, before a start")
def test_a_model_whose_files_were_damaged_is_left_for_the_previous_one(box, tmp_path):
    old, new = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    box.clock.now += 61
    box.keeper.round()
    box.stop()
    (box.store.folder / "bundles" / new.digest / "model.onnx.data").write_bytes(b"damaged")
    box.start()
    assert box.served(_MODEL) == old
    assert box.store.slot(_MODEL).refusal(new.digest) is None


def test_what_a_command_activates_is_served_within_a_round(box, tmp_path):
    new = version_of(CLASSIFIER, tmp_path, "2")
    box.store.add(new.folder)
    box.keeper.round()
    assert box.served(_MODEL) == new.digest
    box.store.change(lambda slots: going_back(box.store, slots, _MODEL, "by hand", 5))
    box.keeper.round()
    assert box.served(_MODEL) == read_bundle(CLASSIFIER).digest


def test_only_one_process_moves_slots(box, tmp_path):
    second = Keeper(box.store, box.models, _LIMITS)
    assert box.keeper.may_move()
    assert not second.may_move()
    wait_for_gate(box.store, version_of(CLASSIFIER, tmp_path, "2"))
    second.round()
    assert box.store.slot(_MODEL).candidate is not None
    box.keeper.stop()
    assert second.may_move()
    second.stop()


@pytest.mark.incident("requests under way", where="swap")
def test_requests_under_way_during_a_swap_all_succeed(box, tmp_path):
    wait_for_gate(box.store, version_of(CLASSIFIER, tmp_path, "2"))
    failures, answered, stop = [], 0, threading.Event()

    def ask():
        nonlocal answered
        while not stop.is_set():
            model = box.models.get(_MODEL)
            try:
                _ask(box)
                answered += 1
            except OutpostError as error:
                if box.models.is_served(model):  # what the services ask before they try again
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    box.keeper.round()
    time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert answered > 0
    assert box.models.get(_MODEL).bundle.manifest.version == "2"


def _stream(model, tokens):
    request = TextRequest(
        prompt_ids=(5, 6, 7), sampling=Sampling(temperature=0.0), max_new_tokens=tokens
    )
    events, first = [], threading.Event()

    def sink(event):
        events.append(event)
        first.set()

    model.engine.submit(request, sink)
    return events, first


@pytest.fixture
def text_box(tmp_path):
    box = _Box(tmp_path, DECODER, *ADAPTERS)
    yield box
    box.stop()


@pytest.mark.incident("a running stream", where="swap")
def test_a_running_stream_ends_on_the_old_model(text_box, tmp_path):
    base = version_of(DECODER, tmp_path, "2")
    adapters = [adapter_of(folder, base, tmp_path, "2") for folder in ADAPTERS]
    wait_for_gate(text_box.store, base, *adapters)
    old = text_box.models.get("tiny-decoder")
    events, first = _stream(old, 100)
    assert first.wait(10)
    text_box.keeper.round()
    assert text_box.models.get("tiny-decoder") is not old
    until = time.monotonic() + 20
    while not isinstance(events[-1], FinishEvent) and time.monotonic() < until:
        time.sleep(0.01)
    assert isinstance(events[-1], FinishEvent)
    assert events[-1].generated_tokens > 1


def test_a_base_and_its_adapters_move_together_there_and_back(text_box, tmp_path):
    store = text_box.store
    before = {name: slot.active for name, slot in store.slots().items()}
    base = version_of(DECODER, tmp_path, "2")
    adapters = [adapter_of(folder, base, tmp_path, "2") for folder in ADAPTERS]
    wait_for_gate(store, base, adapters[0])
    text_box.keeper.round()
    assert {name: slot.active for name, slot in store.slots().items()} == before  # one is missing
    wait_for_gate(store, adapters[1])
    text_box.keeper.round()
    after = {bundle.manifest.name: bundle.digest for bundle in (base, *adapters)}
    assert {name: slot.active for name, slot in store.slots().items()} == after
    model = text_box.models.get("tiny-decoder")
    assert {n: model.adapters.get(n).bundle.digest for n in model.adapters.names()} == {
        name: digest for name, digest in after.items() if name != "tiny-decoder"
    }
    store.change(lambda slots: going_back(store, slots, "tiny-decoder", "by hand", 5))
    text_box.keeper.round()
    assert {name: slot.active for name, slot in store.slots().items()} == before
    model = text_box.models.get("tiny-decoder")
    assert model.bundle.digest == before["tiny-decoder"]
    assert model.adapters.names() == sorted(a.name for a in ADAPTERS)


@pytest.mark.incident("a bad adapter", where="a base and its adapters at the gate")
def test_one_bad_adapter_holds_its_base_back(text_box, tmp_path):
    before = {name: slot.active for name, slot in text_box.store.slots().items()}
    base = version_of(DECODER, tmp_path, "2")
    good = adapter_of(ADAPTERS[0], base, tmp_path, "2")
    bad = spoiled(adapter_of(ADAPTERS[1], base, tmp_path, "2").folder, tmp_path, "3")
    wait_for_gate(text_box.store, base, good, bad)
    text_box.keeper.round()
    slots = text_box.store.slots()
    assert {name: slot.active for name, slot in slots.items()} == before
    assert all(slot.candidate is None and slot.refused for slot in slots.values())


def test_an_adapter_alone_passes_its_own_gate(text_box, tmp_path):
    name = ADAPTERS[0].name
    new = version_of(ADAPTERS[0], tmp_path, "2")
    wait_for_gate(text_box.store, new)
    text_box.keeper.round()
    assert text_box.models.get("tiny-decoder").adapters.get(name).bundle.digest == new.digest
    bad = spoiled(ADAPTERS[0], tmp_path, "3")
    wait_for_gate(text_box.store, bad, release=3)
    text_box.keeper.round()
    assert text_box.models.get("tiny-decoder").adapters.get(name).bundle.digest == new.digest
    assert text_box.store.slot(name).refusal(bad.digest)


def test_an_adapter_alone_is_tried_as_its_base_is_run(text_box, tmp_path, monkeypatch):
    tried, opened_for = [], golden.opened_for_adapter

    def noted(adapter, base, settings):
        tried.append(settings.apart)
        return opened_for(adapter, base, settings)

    monkeypatch.setattr(golden, "opened_for_adapter", noted)
    text_box.models.settings = lambda name: ModelSettings(apart=name == DECODER.name)
    new = version_of(ADAPTERS[0], tmp_path, "2")
    wait_for_gate(text_box.store, new)
    text_box.keeper.round()
    assert tried == [True]
    assert text_box.store.slot(ADAPTERS[0].name).active == new.digest


@pytest.mark.incident("memory for one model only", where="swap")
def test_where_two_do_not_fit_the_old_one_goes_first_and_comes_back_if_the_new_one_is_bad(
    tmp_path,
):
    memory = int(1.5 * expected_bytes(read_bundle(CLASSIFIER), _SETTINGS))
    box = _Box(tmp_path, CLASSIFIER, memory=memory)
    try:
        old = box.served(_MODEL)
        wait_for_gate(box.store, spoiled(CLASSIFIER, tmp_path, "2"))
        box.keeper.round()
        assert box.served(_MODEL) == old
        assert _ask(box)
        new = version_of(CLASSIFIER, tmp_path, "3")
        wait_for_gate(box.store, new, release=3)
        box.keeper.round()
        assert box.served(_MODEL) == new.digest
    finally:
        box.stop()


@pytest.mark.incident("a bundle that takes too much memory", where="gate, over a restart")
def test_a_candidate_that_takes_too_much_memory_is_tried_three_times_and_then_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("outpost_runtime.update.gate._TOLERATED", -(1 << 50))
    memory = int(1.5 * expected_bytes(read_bundle(CLASSIFIER), _SETTINGS))
    box = _Box(tmp_path, CLASSIFIER, memory=memory)
    try:
        old, greedy = box.served(_MODEL), version_of(CLASSIFIER, tmp_path, "2")
        wait_for_gate(box.store, greedy)
        for _ in range(2):
            box.keeper.round()
            assert box.store.slot(_MODEL).candidate.bundle == greedy.digest
            box.die()
            box.start()
        box.keeper.round()
        slot = box.store.slot(_MODEL)
        assert slot.candidate is None
        assert "MiB" in slot.refusal(greedy.digest).reason
        assert box.served(_MODEL) == slot.active == old
        words = [word for _, word in history(box.store)]
        assert words == ["added", "staged", "postponed", "postponed", "refused"]
        wait_for_gate(box.store, version_of(CLASSIFIER, tmp_path, "3"), release=3)
        box.keeper.round()
        assert box.store.slot(_MODEL).candidate  # the next one has its own tries
    finally:
        box.stop()


def test_while_a_model_is_opened_in_place_of_another_callers_are_told_to_come_back(box):
    """Or wait, where they can: see ``exchanged`` of the server."""
    opening, go_on = threading.Event(), threading.Event()

    def accept(_):
        opening.set()
        assert go_on.wait(10)

    box.models._budget.total = int(1.5 * expected_bytes(read_bundle(CLASSIFIER), _SETTINGS))
    bundle = box.store.active(_MODEL)
    thread = threading.Thread(target=box.models.replace, args=(_MODEL, bundle, [], accept))
    thread.start()
    assert opening.wait(10)
    with pytest.raises(BusyError, match="is being opened"):
        box.models.get(_MODEL)
    assert box.models.is_between(_MODEL)
    go_on.set()
    thread.join()
    assert not box.models.is_between(_MODEL)
    assert _ask(box)


# What a review found: each was a good bundle lost, or a bad state that stayed.


def _fail(box, name, error, times=6):
    for _ in range(times):
        box.models.get(name).engine.statistics.failed(0.1, error)


def _move_together(box, tmp_path, version):
    base = version_of(DECODER, tmp_path, version)
    adapters = [adapter_of(folder, base, tmp_path, version) for folder in ADAPTERS]
    wait_for_gate(box.store, base, *adapters, release=int(version))
    box.keeper.round()
    return base, adapters


def test_when_a_base_goes_back_its_adapters_go_back_once(text_box, tmp_path):
    before = {name: slot.active for name, slot in text_box.store.slots().items()}
    _move_together(text_box, tmp_path, "2")
    _fail(text_box, "tiny-decoder", ExecutionError("it broke"))
    text_box.keeper.round()
    slots = text_box.store.slots()
    assert {name: slot.active for name, slot in slots.items()} == before
    assert {len(slot.refused) for slot in slots.values()} == {1}


def test_an_adapter_that_came_with_its_base_takes_it_along_when_it_goes_back(text_box, tmp_path):
    store = text_box.store
    before = {name: slot.active for name, slot in store.slots().items()}
    _move_together(text_box, tmp_path, "2")
    store.change(lambda slots: going_back(store, slots, ADAPTERS[0].name, "by hand", 5))
    assert {name: slot.active for name, slot in store.slots().items()} == before


def test_an_adapter_that_came_alone_does_not_stay_on_a_base_that_is_left(text_box, tmp_path):
    store, name = text_box.store, ADAPTERS[0].name
    base, _ = _move_together(text_box, tmp_path, "2")
    later = adapter_of(ADAPTERS[0], base, tmp_path, "3")
    wait_for_gate(store, later, release=3)
    text_box.clock.now += 61
    text_box.keeper.round()
    assert store.slot(name).active == later.digest
    store.change(lambda slots: going_back(store, slots, "tiny-decoder", "by hand", 5))
    slots = store.slots()
    assert slots["tiny-decoder"].active == read_bundle(DECODER).digest
    for adapter in ADAPTERS:
        active = slots[adapter.name].active
        assert active is None or store.base_of(active) == slots["tiny-decoder"].active


def test_callers_deadlines_are_no_mark_against_a_model(box, tmp_path):
    new = version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    _fail(box, _MODEL, DeadlineError("too late"), times=20)
    box.keeper.round()
    assert box.store.slot(_MODEL).active == new.digest


def test_a_candidate_that_came_while_another_was_tried_is_not_refused_for_it(box, tmp_path):
    bad, good = spoiled(CLASSIFIER, tmp_path, "2"), version_of(CLASSIFIER, tmp_path, "3")
    wait_for_gate(box.store, bad)
    replace = box.models.replace

    def meanwhile(*arguments):
        wait_for_gate(box.store, good, release=3)
        box.models.replace = replace
        replace(*arguments)

    box.models.replace = meanwhile
    box.keeper.round()
    slot = box.store.slot(_MODEL)
    assert slot.refusal(good.digest) is None
    assert slot.candidate.bundle == good.digest


def test_starts_that_end_in_order_before_the_first_round_are_not_counted(box, tmp_path):
    wait_for_gate(box.store, version_of(CLASSIFIER, tmp_path, "2"))
    box.keeper.round()
    for _ in range(activation.MOST_STARTS + 1):
        box.stop()
        box.start()
    assert box.served(_MODEL) != read_bundle(CLASSIFIER).digest


def test_publishing_the_same_bundle_again_costs_a_counter_and_no_adapter(text_box, tmp_path):
    base, _ = _move_together(text_box, tmp_path, "2")
    model = text_box.models.get("tiny-decoder")
    wait_for_gate(text_box.store, base, release=7)
    text_box.keeper.round()
    assert text_box.store.slot("tiny-decoder").release == 7
    assert text_box.models.get("tiny-decoder") is model
    assert model.adapters.names() == sorted(a.name for a in ADAPTERS)


def test_a_first_bundle_is_never_left_for_nothing(tmp_path):
    box = _Box(tmp_path)
    wait_for_gate(box.store, read_bundle(CLASSIFIER), release=1)
    box.keeper.round()
    try:
        for _ in range(activation.MOST_STARTS + 2):
            box.die()
            box.start()
        _fail(box, _MODEL, ExecutionError("it broke"))
        box.keeper.round()
        assert box.served(_MODEL) == read_bundle(CLASSIFIER).digest
    finally:
        box.stop()


def test_a_start_without_enough_memory_leaves_no_bundle(box, tmp_path):
    new = version_of(CLASSIFIER, tmp_path, "2")
    wait_for_gate(box.store, new)
    box.keeper.round()
    box.clock.now += 61
    box.keeper.round()
    box.stop()
    box.memory = 1 << 20
    box.start()
    assert box.store.slot(_MODEL).active == new.digest
    box.stop()
    box.memory = None
    box.start()
    assert box.served(_MODEL) == new.digest


def test_a_base_that_made_room_in_vain_comes_back_with_its_adapters(tmp_path):
    box = _Box(tmp_path, DECODER, *ADAPTERS)
    try:
        box.models._budget.total = int(1.2 * sum(box.models._budget._promised.values()))
        old = box.models.get("tiny-decoder")
        base = version_of(DECODER, tmp_path, "2")
        adapters = [adapter_of(folder, base, tmp_path, "2") for folder in ADAPTERS[:1]]
        adapters.append(spoiled(adapter_of(ADAPTERS[1], base, tmp_path, "2").folder, tmp_path, "3"))
        wait_for_gate(box.store, base, *adapters)
        box.keeper.round()
        model = box.models.get("tiny-decoder")
        assert model is not old
        assert model.bundle.digest == old.bundle.digest
        assert model.adapters.names() == sorted(a.name for a in ADAPTERS)
    finally:
        box.stop()
