import numpy as np
import pytest
from outpost_runtime.errors import BusyError, InvalidInputError
from outpost_runtime.interface import StateSpec
from outpost_runtime.tensor.request import SequenceStep
from outpost_runtime.tensor.sequences import Sequences
from outpost_runtime.tensors import TensorSpec

_SPECS = (
    TensorSpec(name="rate", datatype="INT64", shape=()),
    TensorSpec(name="x", datatype="FP32", shape=(None, None)),
    TensorSpec(name="state", datatype="FP32", shape=(2, None, 3)),
)
_FEEDS = {"rate": np.array(16000), "x": np.ones((5, 4), np.float32)}


def _sequences(**changes):
    return Sequences([StateSpec(input="state", output="new_state")], _SPECS, **changes)


def _outputs(value):
    return {"y": np.zeros(1), "new_state": np.full((2, 5, 3), value, np.float32)}


def test_a_sequence_begins_with_zeros_of_the_batchs_size():
    state = _sequences().before(SequenceStep(id=1, start=True), _FEEDS, 0.0)["state"]
    assert state.shape == (2, 5, 3)
    assert not state.any()


def test_what_a_run_gave_is_the_next_runs_input_and_not_the_clients():
    sequences = _sequences()
    assert set(sequences.after(SequenceStep(id=1, start=True), _outputs(3), 0.0)) == {"y"}
    assert (sequences.before(SequenceStep(id=1), _FEEDS, 1.0)["state"] == 3).all()


@pytest.mark.parametrize("step", [SequenceStep(id=9), SequenceStep(id="1")])
def test_a_sequence_that_was_not_begun_is_refused(step):
    sequences = _sequences()
    sequences.after(SequenceStep(id=1, start=True), _outputs(3), 0.0)
    with pytest.raises(InvalidInputError, match="not known"):
        sequences.before(step, _FEEDS, 1.0)


def test_an_ended_sequence_is_forgotten():
    sequences = _sequences()
    sequences.after(SequenceStep(id=1, start=True, end=True), _outputs(3), 0.0)
    assert len(sequences) == 0


def test_a_silent_sequence_makes_room_and_a_living_one_does_not():
    sequences = _sequences(most=1, idle_seconds=60)
    sequences.after(SequenceStep(id=1, start=True), _outputs(3), 0.0)
    with pytest.raises(BusyError) as caught:
        sequences.before(SequenceStep(id=2, start=True), _FEEDS, 59.0)
    assert caught.value.retry_after == 60
    sequences.before(SequenceStep(id=2, start=True), _FEEDS, 61.0)
    assert len(sequences) == 0


def test_starting_again_forgets_what_was():
    sequences = _sequences(most=1)
    sequences.after(SequenceStep(id=1, start=True), _outputs(3), 0.0)
    assert not sequences.before(SequenceStep(id=1, start=True), _FEEDS, 1.0)["state"].any()


def test_sequences_that_begin_at_the_same_time_share_no_place():
    sequences = _sequences(most=2)
    steps = [SequenceStep(id=number, start=True) for number in range(3)]
    for step in steps[:2]:
        sequences.before(step, _FEEDS, 0.0)
    with pytest.raises(BusyError, match="2 sequences"):
        sequences.before(steps[2], _FEEDS, 0.0)
    sequences.after(steps[0], _outputs(3), 0.0)
    with pytest.raises(BusyError):
        sequences.before(steps[2], _FEEDS, 0.0)


def test_a_sequence_whose_first_run_failed_takes_no_place():
    sequences = _sequences(most=1)
    step = SequenceStep(id=1, start=True)
    sequences.before(step, _FEEDS, 0.0)
    sequences.failed(step)
    sequences.before(SequenceStep(id=2, start=True), _FEEDS, 0.0)


def test_a_beginning_that_failed_leaves_the_sequence_that_was():
    sequences = _sequences(most=1)
    sequences.after(SequenceStep(id=1, start=True), _outputs(3), 0.0)
    again = SequenceStep(id=1, start=True)
    sequences.before(again, _FEEDS, 1.0)
    sequences.failed(again)
    assert (sequences.before(SequenceStep(id=1), _FEEDS, 2.0)["state"] == 3).all()
