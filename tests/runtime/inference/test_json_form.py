"""The HTTP form: JSON, and the binary extension."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import of_elements, to_raw
from outpost_runtime.server.inference import json_form
from outpost_runtime.server.inference.message import InferRequest, InferResponse, OutputTensor
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.tensors import NUMPY_TYPES, datatype_of


def _decode(document, tail=b"", length=None):
    body = json.dumps(document).encode()
    if tail and length is None:
        length = len(body)
    return json_form.decode(body + tail, length, model="m", version="", regions=Regions())


def _input(data=None, *, datatype="FP32", shape=(2,), **parameters):
    tensor = {"name": "x", "datatype": datatype, "shape": list(shape)}
    if data is not None:
        tensor["data"] = data
    if parameters:
        tensor["parameters"] = parameters
    return {"inputs": [tensor]}


def _encoded(array, *, parameters=None, binary=None):
    output = OutputTensor(name="y", datatype=datatype_of(array.dtype), array=array, binary=binary)
    response = InferResponse(model="m", version="1", id="7", outputs=(output,))
    request = InferRequest(model="m", version="", id="7", feeds={}, parameters=parameters or {})
    return json_form.encode(response, request)


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]])
def test_data_may_be_flat_or_nested(data):
    assert _decode(_input(data, shape=(2, 2))).feeds["x"].tolist() == [[1, 2.5], [3, 4]]


def test_what_clients_put_at_the_top_of_their_own_is_left_alone():
    read = _decode(_input([1, 2]) | {"model_name": "m", "id": None})
    assert (read.id, read.feeds["x"].tolist()) == ("", [1, 2])


def test_texts_numbers_and_truth_are_read_as_what_they_are():
    read = _decode(_input(["a", "é"], datatype="BYTES")).feeds["x"]
    assert read.tolist() == [b"a", "é".encode()]
    assert _decode(_input([True, False], datatype="BOOL")).feeds["x"].tolist() == [True, False]
    assert _decode(_input([-1, 2**63 - 1], datatype="INT64")).feeds["x"].tolist()[1] == 2**63 - 1


@given(
    st.sampled_from(
        [dtype for name, dtype in NUMPY_TYPES.items() if name not in ("BYTES", "BF16")]
    ).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
)
def test_binary_tensors_survive_both_ways(array):
    raw = to_raw(array)
    document = _input(
        datatype=datatype_of(array.dtype), shape=array.shape, binary_data_size=len(raw)
    )
    read = _decode(document, raw, len(json.dumps(document))).feeds["x"]
    assert (read.dtype, read.shape, to_raw(read)) == (array.dtype, array.shape, raw)
    body, length = _encoded(array, binary=True)
    assert body[length:] == raw
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}


def test_an_answer_is_json_unless_binary_is_asked_for():
    array = np.array([[1, 2], [3, 4]], np.float32)
    body, length = _encoded(array)
    assert length is None
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
    }
    assert _encoded(array, parameters={"binary_data_output": True})[1]
    assert _encoded(array, parameters={"binary_data_output": True}, binary=False)[1] is None


def test_texts_that_are_no_unicode_must_be_asked_for_as_binary():
    array = of_elements((1,), [b"\xff"])
    with pytest.raises(InvalidInputError, match="binary"):
        _encoded(array)
    assert _encoded(array, binary=True)[0].endswith(b"\x01\0\0\0\xff")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({}, "inputs is missing"),
        ({"inputs": [{"name": "x", "color": 1}]}, "datatype is missing"),
        (_input([1, 2], shape=[1] * 40), "40 dimensions"),
        ({"inputs": [{"name": "x", "datatype": "FP32"}]}, r"inputs\[0\].shape is missing"),
        (_input(), r"inputs\[0\].data is missing"),
        (_input([1]), r"1 elements; \[2\] takes 2"),
        (_input([1, "2"]), "no FP32: '2'"),
        (_input([1.5, 2], datatype="INT64"), "no INT64: 1.5"),
        (_input([True, 2], datatype="INT64"), "no INT64: True"),
        (_input([1, 300], datatype="UINT8"), "UINT8 cannot hold"),
        (_input([1, 2], datatype="FP16"), "binary"),
        (_input(["\ud800", ""], datatype="BYTES"), "not valid Unicode"),
        (_input([1, 2], datatype="nope"), "datatype 'nope'"),
        (_input([1, 2], shape=(-1,)), "impossible shape"),
        (_input(binary_data_size=8), "0 are left in the body"),
        (_input(binary_data_size=-8), "0 are left in the body"),
        (_input(binary_data_size="8"), "of type int"),
        ({"inputs": _input([1, 2])["inputs"] * 2}, "there twice"),
        (_input([[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]], 2]), "too deeply"),
        (_input([1, 2]) | {"parameters": {"a": {}}}, "parameters.a must be"),
    ],
)
def test_a_wrong_body_is_refused_with_the_place(document, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        _decode(document)


@pytest.mark.parametrize(
    ("tail", "length", "complaint"),
    [
        (b"12345678", 0, "not valid JSON"),
        (b"12345678", 9999, "cannot have 9999"),
        (b"1234", None, "4 are left"),
        (b"123456789", None, "1 bytes of the body belong to no input"),
    ],
)
def test_bytes_behind_the_json_must_be_as_many_as_it_says(tail, length, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        _decode(_input(binary_data_size=8), tail, length)
