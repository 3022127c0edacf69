import dataclasses

import pytest
from outpost_runtime.errors import StoreError
from outpost_runtime.latency import Figure, UsualWait
from outpost_runtime.update import activation
from outpost_runtime.update.activation import MOST_STARTS
from outpost_runtime.update.slots import (
    MAX_REFUSALS,
    Behaviour,
    Candidate,
    Slot,
    encode_slot,
    parse_slot,
)

_OLD, _NEW, _NEWER = (letter * 64 for letter in "abc")


def _candidate(bundle=_NEW, release=2, with_base=None):
    return Candidate(bundle=bundle, release=release, with_base=with_base)


def _activated(slot, bundle=_NEW, release=2, before=None):
    waiting = activation.stage("m", slot, _candidate(bundle, release), 1).slots["m"]
    return activation.activate({"m": waiting}, 2, before).slots["m"]


def test_a_candidate_that_passes_is_active_on_probation_and_the_one_before_is_kept():
    slot = _activated(Slot(active=_OLD, release=1))
    assert (slot.active, slot.previous, slot.candidate) == (_NEW, _OLD, None)
    assert (slot.release, slot.previous_release) == (2, 1)
    assert slot.probation is not None


def test_a_bundle_that_is_never_committed_does_not_become_the_previous_one():
    slot = _activated(_activated(Slot(active=_OLD, release=1)), _NEWER, 3)
    assert (slot.active, slot.previous) == (_NEWER, _OLD)


def test_the_first_bundle_is_gone_back_to_though_it_was_never_committed():
    assert _activated(_activated(Slot()), _NEWER, 3).previous == _NEW


def test_after_it_is_committed_it_is_the_previous_one_of_the_next():
    slot = activation.commit("m", _activated(Slot(active=_OLD, release=1)), "", 3).slots["m"]
    assert slot.probation is None
    assert _activated(slot, _NEWER, 3).previous == _NEW


def test_going_back_serves_the_previous_one_and_refuses_the_failed_one():
    change = activation.back({"m": _activated(Slot(active=_OLD, release=1))}, "It failed.", 9)
    slot = change.slots["m"]
    assert (slot.active, slot.previous, slot.release, slot.probation) == (_OLD, None, 1, None)
    assert slot.refusal(_NEW).reason == "It failed."
    with pytest.raises(StoreError, match="has failed here before: It failed"):
        activation.stage("m", slot, _candidate(), 10)


def test_a_bundle_whose_files_were_damaged_may_come_again():
    slot = _activated(Slot(active=_OLD))
    back = activation.back({"m": slot}, "damaged", 9, may_return=True).slots["m"]
    assert activation.stage("m", back, _candidate(), 10).slots["m"].candidate == _candidate()


def test_a_first_bundle_that_fails_leaves_nothing_served():
    assert activation.back({"m": _activated(Slot())}, "It failed.", 9).slots["m"].active is None


def test_a_person_may_let_a_refused_bundle_be_tried_again():
    slot = activation.back({"m": _activated(Slot(active=_OLD))}, "It failed.", 9).slots["m"]
    forgiven = activation.forgive("m", slot, _NEW, 10).slots["m"]
    assert activation.stage("m", forgiven, _candidate(), 11).slots["m"].candidate is not None


def test_a_reason_is_as_long_as_a_slot_file_can_hold():
    slot = Slot(active=_NEW, previous=_OLD)
    back = activation.back({"m": slot}, "\udcff" + "x" * 70_000, 9).slots["m"]
    assert parse_slot(encode_slot(back), "slot") == back
    assert len(encode_slot(back)) < 4096


def test_only_the_last_refusals_are_remembered():
    slot = Slot(active=_OLD)
    for number in range(MAX_REFUSALS + 3):
        waiting = dataclasses.replace(slot, candidate=_candidate(f"{number:064x}"))
        slot = activation.refuse("m", waiting, "no", number).slots["m"]
    assert len(slot.refused) == MAX_REFUSALS
    assert slot.refused[-1].bundle == f"{MAX_REFUSALS + 2:064x}"


def test_a_pinned_slot_takes_no_candidate_and_lets_the_waiting_one_go():
    waiting = activation.stage("m", Slot(active=_OLD), _candidate(), 1).slots["m"]
    pinned = activation.pin("m", waiting, 2).slots["m"]
    assert pinned.candidate is None
    with pytest.raises(StoreError, match="pinned"):
        activation.stage("m", pinned, _candidate(), 3)
    assert activation.stage("m", activation.unpin("m", pinned, 4).slots["m"], _candidate(), 5)


def test_servers_that_die_with_a_bundle_on_probation_are_counted_and_orderly_ones_are_not():
    slot = _activated(Slot(active=_OLD))
    for _ in range(5):
        slot = activation.begin("m", slot).slots["m"]
        slot = activation.end("m", slot, 7).slots["m"]
    assert (slot.probation.starts, slot.probation.watched) == (0, 35)
    for _ in range(MOST_STARTS):
        assert not activation.exhausted(slot)
        slot = activation.begin("m", slot).slots["m"]
    assert activation.exhausted(slot)
    assert activation.begin("m", Slot(active=_OLD)) is None


_BASE, _BASE2, _ADAPTER, _ADAPTER2 = (letter * 64 for letter in "1234")


def _groups(base, adapter):
    slots = {"adapter": Slot(active=_ADAPTER, candidate=adapter), "base": base}
    return activation.moving_together(slots, {"adapter": _BASE})


def test_a_base_moves_with_its_adapters():
    base = Slot(active=_BASE, candidate=_candidate(_BASE2))
    assert _groups(base, _candidate(_ADAPTER2, with_base=_BASE2)) == [("base", "adapter")]


def test_a_base_waits_for_the_adapters_that_hang_on_it():
    assert _groups(Slot(active=_BASE, candidate=_candidate(_BASE2)), None) == []


def test_an_adapter_waits_for_its_base_and_moves_alone_on_the_active_one():
    assert _groups(Slot(active=_BASE), _candidate(_ADAPTER2, with_base=_BASE2)) == []
    assert _groups(Slot(active=_BASE), _candidate(_ADAPTER2, with_base=_BASE)) == [("adapter",)]


def test_a_slot_file_says_everything_and_the_format_before_is_read():
    wait = UsualWait(figure=Figure.FIRST_TOKEN, beside=1, work=7, count=20, seconds=0.25)
    before = Behaviour(requests=21, failures=1, waits=(wait,))
    slot = _activated(Slot(active=_OLD, release=1), before={"m": before})
    slot = activation.refuse(
        "m", activation.stage("m", slot, _candidate(_NEWER, 3), 5).slots["m"], "bad", 6
    ).slots["m"]
    assert parse_slot(encode_slot(slot), "slot") == slot
    assert slot.probation.before == before
    old = parse_slot(b'{"active": "aa", "previous": null}', "slot")
    assert (old.active, old.previous, old.probation) == ("aa", None, None)
    before = b'{"requests": 9, "failures": 1, "seconds": 2.5, "units": 7}'
    on_probation = b'{"probation": {"watched": 1, "starts": 1, "before": %b}}' % before
    assert parse_slot(on_probation, "slot").probation.before == Behaviour(requests=9, failures=1)
