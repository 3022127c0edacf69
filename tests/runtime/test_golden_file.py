"""The golden file holds what safetensors does not, and nothing else gets through."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from outpost_runtime.errors import BundleError
from outpost_runtime.golden import differences
from outpost_runtime.golden_file import load, save

TEXTS = np.array([[b"", b"\x00a\xff"], ["ä".encode(), b"x" * 300]], np.object_)


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {
        "0/inputs/text": TEXTS,
        "0/inputs/none": np.empty((0, 3), np.object_),
        "0/inputs/one": np.array(b"one", np.object_),
        "0/inputs/brief": np.array([1.5, -2], ml_dtypes.bfloat16),
        "0/inputs/flags": np.array([True, False]),
        "0/outputs/x": np.arange(6, dtype=np.uint64).reshape(2, 3),
        "0/outputs/scalar": np.array(3.0, np.float16),
    }
    save(tmp_path / "golden.safetensors", tensors)
    loaded = load(tmp_path / "golden.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tolist() == array.tolist()


def test_equal_tensors_give_equal_bytes(tmp_path):
    for name in "ab":
        save(tmp_path / name, {"x": TEXTS, "y": np.ones(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.uint8),
        np.zeros((2, 8), np.int8),
        np.array([9, 0, 0, 0, 1], np.uint8),
        np.array([1, 0, 0, 0, 1, 1], np.uint8),
    ],
)
def test_texts_that_are_not_packed_as_they_should_be_are_refused(tmp_path, array):
    path = tmp_path / "golden.safetensors"
    safetensors.numpy.save_file({"bytes:x": array}, path)
    with pytest.raises(BundleError, match="'bytes:x'"):
        load(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x10" + b"\x00" * 30])
def test_a_file_that_is_something_else_is_a_bundle_error(tmp_path, data):
    (tmp_path / "golden.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="cannot be read"):
        load(tmp_path / "golden.safetensors")


def _differ(got, expected):
    return differences([({"y": np.array(got)}, {"y": np.array(expected)})])


def test_differences_are_measured_against_the_largest_value_of_all_cases():
    small, large = ({"y": np.float32([[value]])} for value in (0.5, 100.0))
    off = {"y": np.float32([[1.5]])}
    assert differences([(off, small), (large, large)])["relative_difference"] == 0.01
    assert differences([(off, small)]) == {"max_difference": 1.0, "relative_difference": 2.0}


def test_zeros_are_compared_as_they_are():
    assert _differ([0.25], [0.0])["relative_difference"] == 0.25


@pytest.mark.parametrize(
    ("got", "expected"), [([1, 2], [1, 3]), ([True], [False]), ([b"a"], [b"b"])]
)
def test_what_is_no_floating_point_number_must_be_equal(got, expected):
    assert _differ(got, expected)["relative_difference"] == 1
    assert _differ(expected, expected)["relative_difference"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_finite_number_is_never_near(value):
    assert np.isnan(_differ([value], [value])["relative_difference"])


@pytest.mark.parametrize(
    "got", [{}, {"z": np.ones(2)}, {"y": np.ones(3)}, {"y": np.ones(2, np.float32)}]
)
def test_outputs_of_another_kind_cannot_be_compared(got):
    with pytest.raises(ValueError, match="other names, types or shapes"):
        differences([(got, {"y": np.ones(2)})])
