"""Memory that another process binds: what lies where, and that nobody can take it away."""

import fcntl
import gc
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from outpost_runtime.sessions.bound_memory import BoundMemory
from outpost_runtime.sessions.process import ProcessSession

from tests.support.fixtures import DECODER

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def memory():
    return BoundMemory()


@pytest.fixture
def other(memory):
    """The same file, as another process has it."""
    return BoundMemory(os.dup(memory.descriptor))


def test_new_memory_is_zero_and_apart_from_all_other(memory):
    first, second = (memory.zeros((3, 5), FLOAT32) for _ in range(2))
    assert not first.any()
    first.fill(1)
    assert not second.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_a_view_is_found_by_the_other_side_and_written_in_place(memory, other, dtype):
    memory.zeros((7,), FLOAT32)
    array = memory.zeros((4, 3, 1024), np.dtype(dtype))
    view = array[1:3]
    there = other.at(memory.place_of(view))
    assert (there.dtype, there.shape) == (view.dtype, view.shape)
    there[:] = 1
    assert array.astype(bool).any((1, 2)).tolist() == [False, True, True, False]


def test_what_is_allocated_later_is_found_too(memory, other):
    for size in (1, 5000, 20 << 20, 3):
        array = memory.zeros((size,), FLOAT32)
        array[-1] = size
        assert other.at(memory.place_of(array))[-1] == size


def test_nothing_is_a_place_as_well(memory, other):
    logits = memory.zeros((2, 8), FLOAT32)
    assert other.at(memory.place_of(logits[:0].reshape(1, 0, 8))).shape == (1, 0, 8)


def test_what_lies_elsewhere_has_no_place(memory):
    assert memory.place_of(np.zeros(3)) is None
    memory.zeros((3,), FLOAT32)
    assert memory.place_of(np.zeros(3)) is None
    assert memory.place_of(BoundMemory().zeros((3,), FLOAT32)) is None


def test_nobody_can_make_it_smaller(memory):
    memory.zeros((5000,), FLOAT32)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 8)


def test_nobody_can_keep_it_from_growing(memory, other):
    memory.zeros((3,), FLOAT32)
    for seal in (fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE):
        with pytest.raises(PermissionError):
            fcntl.fcntl(other.descriptor, fcntl.F_ADD_SEALS, seal)
    os.ftruncate(other.descriptor, 1 << 30)  # it only wants all to itself
    array = memory.zeros((20 << 20,), FLOAT32)
    array[-1] = 7
    assert other.at(memory.place_of(array))[-1] == 7


def test_what_does_not_fit_into_any_memory_is_said_as_numpy_says_it(memory, other):
    with pytest.raises(MemoryError):
        memory.zeros((1 << 58,), FLOAT32)
    assert not other.at(memory.place_of(memory.zeros((3,), FLOAT32))).any()


def test_it_goes_with_its_last_array():
    def left():
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:bound")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    before = left()
    memory = BoundMemory()
    arrays = [memory.zeros((5000,), FLOAT32) for _ in range(300)]
    taken = left()
    assert before[0] < taken[0] < before[0] + 5  # of the few that a process may have
    assert taken[1] == before[1] + 1
    del memory
    assert left()[1] == taken[1]
    del arrays
    assert left() == before


def test_a_process_writes_nowhere_but_into_the_memory_that_it_shares(memory):
    for own in (None, memory):
        session = ProcessSession(DECODER / "model.onnx", threads=1, memory=own)
        with pytest.raises(AssertionError, match="memory"):
            session.bind({}, {"logits": np.zeros((1, 1, 264), np.float32)})
        session.close()
