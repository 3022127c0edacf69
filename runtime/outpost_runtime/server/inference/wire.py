"""The protocol's gRPC messages to requests, and responses to messages."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from inference import grpc_service_pb2 as pb

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import count_elements, from_raw, of_elements, to_raw
from outpost_runtime.server.inference.message import (
    InferRequest,
    InferResponse,
    OutputTensor,
    Parameter,
    Placement,
)
from outpost_runtime.server.inference.parameters import (
    check_outputs,
    check_placements,
    placement_of,
    requested_output,
)
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.tensors import NUMPY_TYPES, Array

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
    "BYTES": "bytes_contents",
}


class _Named(Protocol):
    """A generated message that has parameters."""

    @property
    def parameters(self) -> Any: ...


def decode(message: pb.ModelInferRequest, regions: Regions) -> InferRequest:
    """Return what a message asks.

    Raises:
        InvalidInputError: Names repeat, sizes do not match, a datatype or region is not known.
    """
    outputs = tuple(requested_output(o.name, _parameters(o)) for o in message.outputs)
    check_outputs(outputs, regions)
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        feeds=_feeds(message, regions),
        outputs=outputs,
        parameters=_parameters(message),
    )


def size_of(message: pb.ModelInferRequest) -> int:
    """Return how many bytes have to be read to decode a message, shared memory included."""
    key = "shared_memory_byte_size"
    placed = (t.parameters[key].int64_param for t in message.inputs if key in t.parameters)
    return message.ByteSize() + sum(max(size, 0) for size in placed)


def encode(response: InferResponse) -> pb.ModelInferResponse:
    """Return a response's message: tensors in ``raw_output_contents``, in the order of outputs."""
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    _set_parameters(message, response.parameters)
    for output in response.outputs:
        described = message.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.array.shape
        )
        if output.placement is None:
            message.raw_output_contents.append(to_raw(output.array))
        else:
            _set_parameters(described, _placement_parameters(output))
            message.raw_output_contents.append(b"")
    return message


def _feeds(message: pb.ModelInferRequest, regions: Regions) -> dict[str, Array]:
    raw = list(message.raw_input_contents)
    placed = [placement_of(_parameters(tensor)) for tensor in message.inputs]
    check_placements(placed)
    sent = len(message.inputs) - sum(place is not None for place in placed)
    if raw and len(raw) != sent:
        raise InvalidInputError(f"There are {len(raw)} raw contents for {sent} inputs.")
    rest = iter(raw)
    feeds: dict[str, Array] = {}
    for tensor, place in zip(message.inputs, placed, strict=True):
        if tensor.name in feeds:
            raise InvalidInputError(f"Input '{tensor.name}' is there twice.")
        shape = tuple(tensor.shape)
        if place is not None:
            feeds[tensor.name] = _placed(tensor, shape, place, regions)
        elif raw:
            feeds[tensor.name] = _raw(tensor, shape, next(rest))
        else:
            feeds[tensor.name] = _typed(tensor, shape)
    return feeds


def _placed(
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    place: Placement,
    regions: Regions,
) -> Array:
    if tensor.HasField("contents"):
        raise InvalidInputError(f"Input '{tensor.name}' is in shared memory and has contents, too.")
    count_elements(tensor.name, tensor.datatype, shape)
    return from_raw(tensor.name, tensor.datatype, shape, regions.read(place))


def _raw(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], data: bytes
) -> Array:
    if tensor.HasField("contents"):
        raise InvalidInputError(f"Input '{tensor.name}' has raw and typed contents together.")
    return from_raw(tensor.name, tensor.datatype, shape, data)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Array:
    count = count_elements(tensor.name, tensor.datatype, shape)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidInputError(f"{tensor.datatype} contents of '{tensor.name}' must be raw.")
    values = list(getattr(tensor.contents, field))
    if len(values) != count:
        raise InvalidInputError(
            f"Input '{tensor.name}' has {len(values)} elements in {field}; "
            f"{list(shape)} takes {count}."
        )
    if tensor.datatype == "BYTES":
        return of_elements(shape, values)
    try:
        # From a list: numpy checks the range of Python numbers, not that of another array's.
        return np.array(values, NUMPY_TYPES[tensor.datatype]).reshape(shape)
    except OverflowError as error:
        raise InvalidInputError(
            f"Input '{tensor.name}' has a value that {tensor.datatype} cannot hold."
        ) from error


def _parameters(message: _Named) -> dict[str, Parameter]:
    if not message.parameters:
        return {}
    found: dict[str, Parameter] = {}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInputError(f"The parameter '{name}' has no value.")
        found[name] = getattr(value, kind)
    return found


def _set_parameters(message: _Named, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        choice = message.parameters[name]
        if isinstance(value, bool):
            choice.bool_param = value
        elif isinstance(value, int):
            choice.int64_param = value
        elif isinstance(value, float):
            choice.double_param = value
        else:
            choice.string_param = value


def _placement_parameters(output: OutputTensor) -> dict[str, Parameter]:
    assert output.placement is not None  # noqa: S101 - the caller looked
    return {
        "shared_memory_region": output.placement.region,
        "shared_memory_byte_size": output.placement.byte_size,
        "shared_memory_offset": output.placement.offset,
    }
