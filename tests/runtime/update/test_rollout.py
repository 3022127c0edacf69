import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.update.offer import Offer, Rollout
from outpost_runtime.update.rollout import Device, bucket, choose
from outpost_runtime.update.slots import Candidate, Refusal, Slot

_NOW = 1_800_000_000
_DEVICE = Device(
    id="box-1",
    model="press-terminal",
    rings=("early",),
    targets=("cpu-int8", "cpu-fp32"),
    runtime="0.4.0",
)


def _offer(release=1, **changes):
    fields = {"name": "m", "version": "1", "target": "cpu-int8", "bundle": f"{release:064x}"}
    return Offer(release=release, **{**fields, **changes})


def _chosen(*offers, device=_DEVICE, slot=None, now=_NOW):
    (choice,) = choose(offers, device, {} if slot is None else {"m": slot}, now)
    return choice


def test_the_newest_release_is_taken():
    assert _chosen(_offer(1), _offer(3), _offer(2)).offer.release == 3


def test_the_best_target_comes_before_the_newest_release():
    offers = _offer(1, target="cpu-int8"), _offer(2, target="cpu-fp32")
    assert _chosen(*offers).offer.release == 1
    only = dataclasses.replace(_DEVICE, targets=("cpu-fp32",))
    assert _chosen(*offers, device=only).offer.release == 2
    none = dataclasses.replace(_DEVICE, targets=("cuda-fp16",))
    assert _chosen(*offers, device=none).reason == "is built for cpu-fp32, cpu-int8 only"


def test_what_is_here_is_not_taken_again_and_nothing_older_is():
    here = Slot(active=f"{2:064x}", release=2)
    assert _chosen(_offer(1), _offer(2), slot=here).reason == "is up to date"
    assert "older than what is here (2)" in _chosen(_offer(1), slot=here).reason


def test_what_waits_for_the_gate_is_not_fetched_again():
    slot = Slot(candidate=Candidate(bundle=f"{2:064x}", release=2))
    assert _chosen(_offer(2), slot=slot).reason == "waits for the gate"
    assert _chosen(_offer(2), _offer(3), slot=slot).offer.release == 3


def test_a_bundle_that_failed_here_is_not_taken_again_and_an_older_good_one_is():
    slot = Slot(refused=(Refusal(bundle=f"{2:064x}", at=1, reason="It was bad."),))
    assert "has failed here before: It was bad." in _chosen(_offer(2), slot=slot).reason
    assert _chosen(_offer(1), _offer(2), slot=slot).offer.release == 1


def test_pinned_and_unwanted_models_stay_as_they_are():
    assert _chosen(_offer(1), slot=Slot(pinned=True)).reason == "is pinned"
    other = dataclasses.replace(_DEVICE, names=("other",))
    assert _chosen(_offer(1), device=other).reason == "is not wanted on this box"


def test_the_offer_says_for_whom_it_is():
    reasons = {
        "is for car, and this box is 'press-terminal'": _offer(devices=("car",)),
        "needs runtime 0.10.0, and this is 0.4.0": _offer(minimum_runtime="0.10.0"),
        "is halted by its publisher": _offer(rollout=Rollout(percent=0)),
        "is for the rings late": _offer(rollout=Rollout(rings=("late",))),
        "is for later": _offer(rollout=Rollout(not_before=_NOW + 1)),
        "came with a window that has closed": _offer(rollout=Rollout(not_after=_NOW - 1)),
    }
    assert {_chosen(offer).reason.removeprefix("release 1 ") for offer in reasons.values()} == {
        *reasons
    }
    fitting = _offer(
        devices=("press-terminal", "car"),
        minimum_runtime="0.4",
        rollout=Rollout(rings=("early", "late"), not_before=_NOW, not_after=_NOW),
    )
    assert _chosen(fitting).offer == fitting


def test_a_percentage_reaches_about_that_share_of_the_boxes():
    offer = _offer(rollout=Rollout(percent=10))
    boxes = [dataclasses.replace(_DEVICE, id=f"box-{n}") for n in range(3000)]
    taken = sum(_chosen(offer, device=box).offer is not None for box in boxes)
    assert 230 < taken < 370


@given(device=st.text(max_size=30), release=st.integers(1, 1000), low=st.integers(0, 100))
def test_a_percentage_that_grows_only_adds_boxes(device, release, low):
    box = dataclasses.replace(_DEVICE, id=device)
    reached = [
        _chosen(_offer(release, rollout=Rollout(percent=percent)), device=box).offer is not None
        for percent in (low, 100)
    ]
    assert reached[1]
    assert reached[0] == (bucket(device, _offer(release)) < low * 100)
