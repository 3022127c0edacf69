import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inference import grpc_service_pb2 as pb
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import of_elements, to_raw
from outpost_runtime.server.inference.message import InferResponse, OutputTensor
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.server.inference.wire import decode, encode
from outpost_runtime.server.waiting import LARGE_BYTES, aside_if_large
from outpost_runtime.tensors import NUMPY_TYPES, datatype_of


def _request(*inputs, raw=()):
    request = pb.ModelInferRequest(raw_input_contents=raw)
    for name, datatype, shape, contents in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    return request


def _feeds(request):
    return decode(request, Regions()).feeds


def _sent(array):
    output = OutputTensor(name="x", datatype=datatype_of(array.dtype), array=array)
    return encode(InferResponse(model="m", version="1", id="", outputs=(output,)))


_PLAIN = [dtype for name, dtype in NUMPY_TYPES.items() if name not in ("BYTES", "BF16")]


@given(
    st.sampled_from(_PLAIN).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
    )
)
def test_raw_tensors_survive_the_wire(array):
    request = _request(("x", datatype_of(array.dtype), array.shape, None), raw=[array.tobytes()])
    decoded = _feeds(request)["x"]
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert _sent(decoded).raw_output_contents[0] == array.tobytes()


def test_an_input_in_shared_memory_has_no_contents():
    request = _request(("x", "UINT8", [2], pb.InferTensorContents(uint_contents=[1, 2])))
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 2
    with pytest.raises(InvalidInputError, match="has contents, too"):
        _feeds(request)


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_texts_and_other_bytes_survive_the_wire(elements):
    array = of_elements((len(elements), 1), elements)
    for contents, raw in (
        (None, [to_raw(array)]),
        (pb.InferTensorContents(bytes_contents=elements), ()),
    ):
        decoded = _feeds(_request(("x", "BYTES", array.shape, contents), raw=raw))["x"]
        assert decoded.ravel().tolist() == elements
        assert decoded.shape == array.shape
        assert _sent(decoded).raw_output_contents[0] == to_raw(array)


@pytest.mark.parametrize(
    ("array", "is_large"),
    [
        (of_elements((10,), [bytes(100_000)] * 10), True),
        (of_elements((5000,), [b"a"] * 5000), True),
        (of_elements((2, 8), [bytes(100)] * 16), False),
        (of_elements((0,), []), False),
        (np.zeros(LARGE_BYTES + 1, np.uint8), True),
        (np.zeros(100, np.float32), False),
    ],
)
def test_answers_that_take_long_to_write_are_written_beside_the_event_loop(array, is_large):
    output = OutputTensor(name="x", datatype=datatype_of(array.dtype), array=array)
    response = InferResponse(model="m", version="1", id="", outputs=(output,))

    async def writer():
        return await aside_if_large(response.weight, threading.get_ident)

    assert (asyncio.run(writer()) != threading.get_ident()) == is_large


def test_bfloat16_survives_the_wire():
    array = np.array([1.5, -2.0, 3e38], NUMPY_TYPES["BF16"])
    decoded = _feeds(_request(("x", "BF16", [3], None), raw=[array.tobytes()]))["x"]
    assert decoded.tolist() == array.tolist()
    assert _sent(decoded).raw_output_contents[0] == array.tobytes()


def test_typed_contents_are_read():
    contents = pb.InferTensorContents(int64_contents=[1, 2, 3, 4])
    assert _feeds(_request(("x", "INT64", [2, 2], contents)))["x"].tolist() == [[1, 2], [3, 4]]


_ONES = pb.InferTensorContents(fp32_contents=[1.0])


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (_request(("x", "FP32", [2], _ONES)), "1 elements in fp32_contents"),
        (_request(("x", "INT64", [1], _ONES)), "0 elements in int64_contents"),
        (_request(("x", "FP32", [1], _ONES), ("x", "FP32", [1], _ONES)), "is there twice"),
        (_request(("x", "FP32", [1], _ONES), raw=[b"1234"]), "raw and typed"),
        (_request(("x", "FP32", [1], None), raw=[b"1234", b"1"]), "2 raw contents for 1 inputs"),
        (_request(("x", "FP32", [1], None), raw=[b"123"]), "has 3 bytes"),
        (_request(("x", "FP32", [2**30, 2**30], None), raw=[b"123"]), "impossible shape"),
        (_request(("x", "FP32", [0, 2**31, 2**31], None), raw=[b""]), "impossible shape"),
        (_request(("x", "FP32", [2**31] * 20_000, None), raw=[b"1"]), "20000 dimensions"),
        (_request(("x", "FP32", [-1], None), raw=[b"1234"]), "impossible shape"),
        (_request(("x", "STRING", [1], None), raw=[b"1234"]), "datatype 'STRING'"),
        (_request(("x", "BYTES", [2], None), raw=[b"\0\0\0\0"]), "BYTES \\[2\\] takes 2"),
        (_request(("x", "BYTES", [1], None), raw=[b"\5\0\0\0abc"]), "ends within an element"),
        (_request(("x", "BYTES", [1], None), raw=[b"\0\0\0\0\0"]), "within the length"),
        (_request(("x", "BYTES", [2**31], None), raw=[b"1234"]), "0 elements in 4 bytes"),
        (_request(("x", "FP16", [1], _ONES)), "must be raw"),
        (
            _request(("x", "UINT8", [1], pb.InferTensorContents(uint_contents=[300]))),
            "UINT8 cannot hold",
        ),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_fault(request_, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        _feeds(request_)
