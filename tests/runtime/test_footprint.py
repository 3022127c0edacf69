"""What a run takes, measured."""

import mmap
import os

import numpy as np
import onnxruntime
import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.footprint import (
    Footprints,
    has_open_sizes,
    measure_run,
    measured_numbers,
)
from outpost_runtime.interface import EmbeddingInterface, TensorInterface
from outpost_runtime.tensors import TensorSpec

from tests.support.fixtures import CLASSIFIER, EMBEDDER

_MB = 1 << 20
_FEEDS = {"x": np.array([[1, 2, 3]])}


def _interface(max_batch, max_sequence=None, shape=(None, None)):
    return TensorInterface(
        model="m.onnx",
        tokenizer=None,
        max_batch=max_batch,
        max_sequence=max_sequence,
        labels=(),
        inputs=(TensorSpec(name="x", datatype="INT64", shape=shape),),
        outputs=(),
    )


class Hungry:
    """A run that takes a megabyte for every row and keeps it, as ONNX Runtime's arena does."""

    def __init__(self):
        self.shapes = []
        self.kept = []

    def __call__(self, feeds):
        self.shapes.append(feeds["x"].shape)
        memory = mmap.mmap(-1, len(feeds["x"]) * _MB)
        memory.write(b"x" * len(memory))
        self.kept.append(memory)


def test_rows_are_counted_up_to_the_largest_batch():
    run = Hungry()
    taken = measure_run(_interface(32, 100), _FEEDS, run, os.getpid())
    assert run.shapes == [(1, 3), (4, 100)]
    assert 32 * _MB <= taken <= 80 * _MB


@pytest.mark.parametrize(
    ("interface", "shape"),
    [
        (_interface(2, 100), (2, 100)),
        (_interface(9), (4, 3)),
        (_interface(9, 100, (None, 3)), (4, 3)),
    ],
)
def test_no_run_is_larger_than_clients_may_ask_for(interface, shape):
    run = Hungry()
    measure_run(interface, _FEEDS, run, os.getpid())
    assert run.shapes[-1] == shape


def test_where_dimensions_have_other_meanings_golden_inputs_are_all_there_is():
    run = Hungry()
    assert measure_run(_interface(0), _FEEDS, run, os.getpid()) >= _MB
    assert run.shapes == [(1, 3)]


@pytest.mark.parametrize(
    ("interface", "numbers", "has_open"),
    [
        (_interface(32, 100), 3200, False),
        (_interface(32), 96, True),
        (_interface(0), 3, True),
        (_interface(0, 100), 3, True),
        (_interface(0, shape=(1, 3)), 3, False),
        (_interface(9, shape=(None, 3)), 27, False),
    ],
)
def test_the_numbers_of_the_measured_run_and_whether_clients_can_send_more(
    interface, numbers, has_open
):
    assert measured_numbers(interface, _FEEDS) == numbers
    assert has_open_sizes(interface) is has_open


def test_golden_inputs_may_be_empty():
    empty = {name: array[:, :0] for name, array in _FEEDS.items()}
    assert measured_numbers(_interface(0), empty) == 1


@pytest.mark.parametrize("folder", [CLASSIFIER, EMBEDDER])
def test_values_are_such_that_the_model_knows_them(folder):
    interface = read_bundle(folder).manifest.interface
    assert isinstance(interface, TensorInterface | EmbeddingInterface)
    seen = []
    feeds = {spec.name: np.array([[5, 6]]) for spec in interface.inputs}
    measure_run(interface, feeds, seen.append, os.getpid())
    assert {value for array in seen[-1].values() for value in array.ravel().tolist()} == {5, 6}


def test_a_measurement_is_found_again_and_not_with_another_library(tmp_path, monkeypatch):
    footprints = Footprints(tmp_path / "measured")
    assert footprints.find("ab") is None
    footprints.keep("ab", 123)
    assert Footprints(tmp_path / "measured").find("ab") == 123
    assert footprints.find("cd") is None
    monkeypatch.setattr(onnxruntime, "__version__", "1.0")
    assert footprints.find("ab") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_bytes": "1"}', '{"run_bytes": -1}'])
def test_a_damaged_measurement_is_none(tmp_path, text):
    footprints = Footprints(tmp_path)
    footprints.keep("ab", 1)
    (tmp_path / "ab.json").write_text(text)
    assert footprints.find("ab") is None


def test_a_store_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "measured").write_text("a file where the folder should be")
    footprints = Footprints(tmp_path / "measured")
    footprints.keep("ab", 1)
    assert footprints.find("ab") is None
