"""The protocol's HTTP form: JSON, and the binary tensor extension behind it. Pure.

A body is JSON, or, where a header gives its length, JSON with the bytes of some tensors
behind it, in the order in which they stand there.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message

from outpost_runtime.documents import Reader, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import count_elements, from_raw, of_elements, to_raw
from outpost_runtime.server.inference.message import (
    InferRequest,
    InferResponse,
    OutputTensor,
    Parameter,
    Placement,
    RequestedOutput,
)
from outpost_runtime.server.inference.parameters import (
    MOST_PLACED,
    check_outputs,
    check_placements,
    placement_of,
    requested_output,
    take,
)
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.tensors import NUMPY_TYPES, Array

_DEEPEST = 16
_ALL_BINARY = "binary_data_output"
_REGION = b"shared_memory_region"


def decode(
    body: bytes, json_length: int | None, *, model: str, version: str, regions: Regions
) -> InferRequest:
    """Return what a body asks.

    Args:
        json_length: Bytes of the JSON; None is the whole body.

    Raises:
        InvalidInputError: It is not of this form; the message names the place.
    """
    if json_length is not None and not 0 <= json_length <= len(body):
        raise InvalidInputError(f"The JSON cannot have {json_length} of {len(body)} bytes.")
    length = len(body) if json_length is None else json_length
    reader = parse_json_object(body[:length], path="request")
    binary = _Binary(memoryview(body)[length:])
    parameters = _parameters(reader)
    feeds: dict[str, Array] = {}
    tensors = [_Tensor.read(table) for table in reader.tables("inputs")]
    check_placements([tensor.placement for tensor in tensors])
    for tensor in tensors:
        name, array = tensor.name, tensor.array(binary, regions)
        if name in feeds:
            raise InvalidInputError(f"Input '{name}' is there twice.")
        feeds[name] = array
    outputs = tuple(map(_requested, reader.optional("outputs", reader.tables) or ()))
    check_outputs(outputs, regions)
    identity = reader.optional("id", reader.string) or ""
    binary.end()  # what else stands at the top is some clients' own, such as KServe's model_name
    return InferRequest(
        model=model, version=version, id=identity, feeds=feeds, outputs=outputs,
        parameters=parameters,
    )  # fmt: skip


def size_of(body: bytes) -> int:
    """Return how many bytes may have to be read to decode a body, shared memory included."""
    may_place = _REGION in body or b"\\u" in body  # which can spell the same
    return len(body) + MOST_PLACED * may_place


def encode(response: InferResponse, request: InferRequest) -> tuple[bytes, int | None]:
    """Return a response's body and, if bytes follow the JSON, the JSON's length."""
    binary_by_default = take(request.parameters, _ALL_BINARY, bool, False)
    document = described(response)
    tail: list[bytes] = []
    for output in response.outputs:
        table: dict[str, Any] = {
            "name": output.name, "datatype": output.datatype, "shape": list(output.array.shape),
        }  # fmt: skip
        if output.placement is not None:
            table["parameters"] = {
                "shared_memory_region": output.placement.region,
                "shared_memory_offset": output.placement.offset,
                "shared_memory_byte_size": output.placement.byte_size,
            }
        elif binary_by_default if output.binary is None else output.binary:
            data = to_raw(output.array)
            table["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            table["data"] = _data(output)
        document["outputs"].append(table)
    text = json.dumps(document, separators=(",", ":")).encode()
    return b"".join([text, *tail]), len(text) if tail else None


def described(response: InferResponse) -> dict[str, Any]:
    """Return everything of a response but its tensors."""
    document: dict[str, Any] = {
        "model_name": response.model, "model_version": response.version,
    }  # fmt: skip
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    return document | {"outputs": []}


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON's types, in its own names, numbers as numbers."""
    return {
        field.name: _plain(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if field.containing_oneof is None or message.HasField(field.name)
    }


class _Binary:
    """The bytes behind the JSON, taken one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._rest = data

    def take(self, name: str, size: int) -> memoryview:
        if not 0 <= size <= len(self._rest):
            raise InvalidInputError(
                f"Input '{name}' shall have {size} bytes; {len(self._rest)} are left in the body."
            )
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def end(self) -> None:
        if len(self._rest):
            raise InvalidInputError(f"{len(self._rest)} bytes of the body belong to no input.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """An input as it is described; ``data`` is None where its bytes are elsewhere."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    placement: Placement | None
    binary_size: int | None
    data: list[Any] | None

    @classmethod
    def read(cls, reader: Reader) -> "_Tensor":
        name, datatype = reader.string("name"), reader.string("datatype")
        shape = tuple(reader.list_of("shape", int))
        parameters = _parameters(reader)
        placement, size = placement_of(parameters), parameters.get("binary_data_size")
        elsewhere = placement is not None or size is not None
        tensor = cls(
            name=name,
            datatype=datatype,
            shape=shape,
            count=count_elements(name, datatype, shape),
            placement=placement,
            binary_size=None if size is None else take(parameters, "binary_data_size", int, 0),
            data=None if elsewhere else reader.items("data"),
        )
        reader.end()
        return tensor

    def array(self, binary: "_Binary", regions: Regions) -> Array:
        if self.placement is not None:
            return from_raw(self.name, self.datatype, self.shape, regions.read(self.placement))
        if self.binary_size is not None:
            data = binary.take(self.name, self.binary_size)
            return from_raw(self.name, self.datatype, self.shape, data)
        assert self.data is not None  # noqa: S101 - it is nowhere else
        return _from_json(self.name, self.datatype, self.shape, self.count, self.data)


def _from_json(
    name: str, datatype: str, shape: tuple[int, ...], count: int, data: list[Any]
) -> Array:
    if datatype in ("FP16", "BF16"):
        raise InvalidInputError(f"Input '{name}' of {datatype} must be sent as binary data.")
    values = list(_flat(name, data, _DEEPEST))
    if len(values) != count:
        raise InvalidInputError(
            f"Input '{name}' has {len(values)} elements; {list(shape)} takes {count}."
        )
    kinds = {"BYTES": str, "BOOL": bool}.get(datatype, int if "INT" in datatype else (int, float))
    for value in values:
        if not isinstance(value, kinds) or (isinstance(value, bool) and datatype != "BOOL"):
            raise InvalidInputError(
                f"Input '{name}' has an element that is no {datatype}: {repr(value)[:80]}."
            )
    if datatype == "BYTES":
        return of_elements(shape, [_encoded(name, value) for value in values])
    try:
        return np.array(values, NUMPY_TYPES[datatype]).reshape(shape)
    except OverflowError as error:
        raise InvalidInputError(
            f"Input '{name}' has a value that {datatype} cannot hold."
        ) from error


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"Input '{name}' has text that is not valid Unicode.") from error


def _flat(name: str, data: list[Any], depth: int) -> Iterable[Any]:
    if not depth:
        raise InvalidInputError(f"Input '{name}' is nested too deeply.")
    for value in data:
        if isinstance(value, list):
            yield from _flat(name, value, depth - 1)
        else:
            yield value


def _requested(reader: Reader) -> RequestedOutput:
    output = requested_output(reader.string("name"), _parameters(reader))
    reader.end()
    return output


def _parameters(reader: Reader) -> Mapping[str, Parameter]:
    table = reader.optional("parameters", reader.table)
    return {} if table is None else parameters_of(table)


def parameters_of(table: Reader) -> dict[str, Parameter]:
    """Take everything that is left of a table, as parameters."""
    return table.named((bool, int, float, str))


def _data(output: OutputTensor) -> list[Any]:
    values = output.array.ravel()
    if output.datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"The output '{output.name}' is not UTF-8: ask for it as binary data."
            ) from error
    if output.datatype in ("FP16", "BF16"):
        raise InvalidInputError(
            f"The output '{output.name}' is {output.datatype}: ask for it as binary data."
        )
    listed: list[Any] = values.tolist()
    return listed


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _single(inner, item) for key, item in value.items()}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
