import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inference import grpc_service_pb2 as pb
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.server.inference_codec import decode_inputs, encode_outputs
from outpost_runtime.tensors import NUMPY_TYPES, TensorSpec, datatype_of


def _request(*inputs, raw=()):
    request = pb.ModelInferRequest(raw_input_contents=raw)
    for name, datatype, shape, contents in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    return request


@given(
    st.sampled_from(list(NUMPY_TYPES.values())).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
    )
)
def test_raw_tensors_survive_the_wire(array):
    request = _request(("x", datatype_of(array.dtype), array.shape, None), raw=[array.tobytes()])
    decoded = decode_inputs(request)["x"]
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    spec = TensorSpec(name="x", datatype=datatype_of(array.dtype), shape=(None,) * array.ndim)
    assert (
        encode_outputs(request, {"x": decoded}, (spec,)).raw_output_contents[0] == array.tobytes()
    )


def test_typed_contents_are_read():
    contents = pb.InferTensorContents(int64_contents=[1, 2, 3, 4])
    assert decode_inputs(_request(("x", "INT64", [2, 2], contents)))["x"].tolist() == [
        [1, 2],
        [3, 4],
    ]


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
        (_request(("x", "FP32", [2**30, 2**30], None), raw=[b"123"]), "has 3 bytes"),
        (_request(("x", "FP32", [-1], None), raw=[b"1234"]), "impossible shape"),
        (_request(("x", "BYTES", [1], None), raw=[b"1234"]), "datatype 'BYTES'"),
        (_request(("x", "FP16", [1], _ONES)), "must be raw"),
        (
            _request(("x", "UINT8", [1], pb.InferTensorContents(uint_contents=[300]))),
            "UINT8 cannot hold",
        ),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_fault(request_, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        decode_inputs(request_)
