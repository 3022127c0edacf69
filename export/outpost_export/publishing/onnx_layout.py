"""Where the tensors of an ONNX graph lie, read from the bytes of its file without loading them.

Only what says where numbers lie is read of the protobuf messages (onnx.proto: ModelProto,
GraphProto, NodeProto, AttributeProto, TensorProto), subgraphs and constants included; all else is
skipped. So the weights of a large file are never copied, and their places are known exactly.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MOST_BITS = 64

_PACKED_INPUTS = {"MatMulNBits": (1, 3), "GatherBlockQuantized": (0, 3)}
"""Operators of ONNX Runtime, and their inputs that hold two numbers in a byte where bits are 4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a graph whose numbers lie somewhere as bytes.

    Attributes:
        datatype: A value of ``TensorProto.DataType``.
        location: The file of external data, or None for the graph's own.
        start: Where its bytes begin in that file.
        size: How many they are, or None where only the shape says it.
        packed: Every byte holds two numbers, as the node that takes it says.
    """

    name: str
    datatype: int
    shape: tuple[int, ...]
    location: str | None
    start: int
    size: int | None
    packed: bool = False


def read_tensors(data: memoryview) -> list[StoredTensor]:
    """Return the tensors of an ONNX file.

    Raises:
        ValueError: The bytes are no ONNX file.
    """
    stored: list[StoredTensor | None] = []
    packed: set[str] = set()
    graphs = list(_message(data, 0, len(data)).messages(7))
    while graphs:
        graph = graphs.pop()
        stored += map(_stored, graph.messages(5))
        for node in graph.messages(1):
            attributes = list(node.messages(5))
            packed |= _packed_inputs(node, attributes)
            for attribute in attributes:
                stored += map(_stored, attribute.messages(5))
                graphs += [*attribute.messages(6), *attribute.messages(11)]
    return [replace(t, packed=t.name in packed) for t in stored if t is not None]


@dataclass(frozen=True, slots=True)
class _Message:
    """A message's fields by number: integers, and the ranges where bytes lie."""

    data: memoryview
    integers: dict[int, list[int]]
    ranges: dict[int, list[range]]

    def messages(self, number: int) -> "Iterator[_Message]":
        for place in self.ranges[number]:
            yield _message(self.data, place.start, place.stop)

    def texts(self, number: int) -> list[str]:
        return [bytes(self.data[p.start : p.stop]).decode() for p in self.ranges[number]]

    def text(self, number: int) -> str:
        return "".join(self.texts(number)[-1:])

    def integer(self, number: int, default: int) -> int:
        return [default, *self.integers[number]][-1]


def _message(data: memoryview, at: int, end: int) -> _Message:
    message = _Message(data, defaultdict(list), defaultdict(list))
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            message.integers[number].append(value)
            continue
        size, at = (_FIXED[wire], at) if wire in _FIXED else _length(data, at, wire)
        if at + size > end:
            raise ValueError("a field is longer than its message")
        message.ranges[number].append(range(at, at + size))
        at += size
    return message


def _length(data: memoryview, at: int, wire: int) -> tuple[int, int]:
    if wire != _BYTES:
        raise ValueError(f"no field is of wire type {wire}")
    return _varint(data, at)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MOST_BITS, 7):
        if at >= len(data):
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - the highest bit says that more follows
            return value, at
    raise ValueError("a number is too long")


def _stored(tensor: _Message) -> StoredTensor | None:
    external = {entry.text(1): entry.text(2) for entry in tensor.messages(13)}
    raw = tensor.ranges[9]
    if not external and not raw:
        return None  # numbers in fields of their own: few
    size = len(raw[-1]) if raw else int(external["length"]) if "length" in external else None
    return StoredTensor(
        name=tensor.text(8),
        datatype=tensor.integer(2, 0),
        shape=tuple(_dimensions(tensor)),
        location=None if raw else external.get("location", ""),
        start=raw[-1].start if raw else int(external.get("offset", 0)),
        size=size,
    )


def _dimensions(tensor: _Message) -> Iterator[int]:
    yield from tensor.integers[1]
    for place in tensor.ranges[1]:  # packed
        at = place.start
        while at < place.stop:
            size, at = _varint(tensor.data, at)
            yield size


def _packed_inputs(node: _Message, attributes: Sequence[_Message]) -> set[str]:
    places = _PACKED_INPUTS.get(node.text(4), ())
    bits = {a.text(1): a.integer(3, 0) for a in attributes} if places else {}
    if bits.get("bits", 4) != 4:  # noqa: PLR2004 - both operators' default
        return set()
    inputs = node.texts(1)
    return {inputs[place] for place in places if place < len(inputs)} - {""}
