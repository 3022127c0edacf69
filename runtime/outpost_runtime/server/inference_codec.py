"""Tensors of the Open Inference Protocol to numpy and back. Pure.

Sizes are checked against the bytes that arrived before anything is allocated.
"""

import math
from collections.abc import Mapping

import numpy as np
from inference import grpc_service_pb2 as pb

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.tensors import NUMPY_TYPES, Array, TensorSpec

_LARGEST_SIZE = 2**31
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def decode_inputs(request: pb.ModelInferRequest) -> dict[str, Array]:
    """Return the request's tensors by name.

    Raises:
        InvalidInputError: Names repeat, sizes do not match, or a datatype is not known.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            f"There are {len(raw)} raw contents for {len(request.inputs)} inputs."
        )
    feeds: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in feeds:
            raise InvalidInputError(f"Input '{tensor.name}' is there twice.")
        feeds[tensor.name] = _decode(tensor, raw[index] if raw else None)
    return feeds


def encode_outputs(
    request: pb.ModelInferRequest, outputs: Mapping[str, Array], specs: tuple[TensorSpec, ...]
) -> pb.ModelInferResponse:
    """Return the requested outputs (all, if none is named) as raw contents.

    Raises:
        InvalidInputError: An unknown output was asked for.
    """
    known = {spec.name: spec for spec in specs}
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name in wanted_outputs(request, specs):
        array = outputs[name]
        response.outputs.add(name=name, datatype=known[name].datatype, shape=array.shape)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        response.raw_output_contents.append(little_endian.tobytes())
    return response


def wanted_outputs(request: pb.ModelInferRequest, specs: tuple[TensorSpec, ...]) -> list[str]:
    """Return the names of the outputs to send.

    Raises:
        InvalidInputError: The model has no output of that name.
    """
    known = [spec.name for spec in specs]
    wanted = [output.name for output in request.outputs] or known
    for name in wanted:
        if name not in known:
            raise InvalidInputError(
                f"The model has no output '{name}'; its outputs are {', '.join(known)}."
            )
    return wanted


def _decode(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
    if tensor.datatype not in NUMPY_TYPES:
        raise InvalidInputError(
            f"Input '{tensor.name}' has datatype '{tensor.datatype}'; known are "
            f"{', '.join(NUMPY_TYPES)}."
        )
    shape = tuple(tensor.shape)
    if any(not 0 <= size <= _LARGEST_SIZE for size in shape):
        raise InvalidInputError(f"Input '{tensor.name}' has an impossible shape: {list(shape)}.")
    if raw is None:
        return _from_typed(tensor, shape)
    if tensor.HasField("contents"):
        raise InvalidInputError(f"Input '{tensor.name}' has raw and typed contents together.")
    dtype = NUMPY_TYPES[tensor.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidInputError(
            f"Input '{tensor.name}' has {len(raw)} bytes; {tensor.datatype} {list(shape)} "
            f"takes {expected}."
        )
    flat = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False)
    return flat.reshape(shape)


def _from_typed(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidInputError(f"{tensor.datatype} contents of '{tensor.name}' must be raw.")
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise InvalidInputError(
            f"Input '{tensor.name}' has {len(values)} elements in {field}; "
            f"{list(shape)} takes {math.prod(shape)}."
        )
    try:
        # From a list: numpy checks the range of Python numbers, not that of another array's.
        return np.array(list(values), NUMPY_TYPES[tensor.datatype]).reshape(shape)
    except OverflowError as error:
        raise InvalidInputError(
            f"Input '{tensor.name}' has a value that {tensor.datatype} cannot hold."
        ) from error
