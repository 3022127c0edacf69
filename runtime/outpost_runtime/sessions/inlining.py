"""A graph with its external weights in it, as a list of pieces: pure, nothing is read here.

ONNX Runtime maps external data from files that have a place on a disk. Where there is none, the
graph goes to it as one stream of bytes with the weights inside (``raw_data``). What the stream
consists of is worked out from the graph alone, so that nobody needs all weights at once. Rules:

1. A weight becomes ``raw_data``; everything else of the graph is byte for byte as it was.
2. A large weight that nothing but ``Gather`` reads, such as an encoder's table of embeddings,
   becomes an input, fed with the same memory at every run. For ONNX Runtime copies every weight
   once while it opens a graph, so that the largest one decides how much memory that takes; and such
   a weight is never packed or fused.
3. Where the graph would grow beyond what a message can hold, its largest weights are left external
   and handed over one by one.

Field numbers are those of ``onnx.proto`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from outpost_runtime.sessions.weight import Region, Weight
from outpost_runtime.sessions.wire_form import (
    DELIMITED,
    Field,
    delimited,
    fields,
    head,
    varint_field,
    varints,
)

MOST_BYTES = (1 << 31) - (1 << 24)
"""Of one message: protocol buffers end at 2 GiB, and the shapes that are worked out come on top."""

_TABLE_SHARE = 8
"""A table has at least this part (one in so many) of the graph's external bytes."""

_TABLE_TYPES = frozenset((1, 2, 3, 10))  # FLOAT, UINT8, INT8, FLOAT16; shapes are made of others

_GRAPH, _INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 5, 11, 12
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_IS_EXTERNAL = 1
_NESTED: Mapping[str, Mapping[int, str]] = {
    "model": {_GRAPH: "main", 25: "function"},
    "function": {7: "node"},
    "main": {1: "node", _INITIALIZER: "tensor", 15: "sparse"},
    "graph": {1: "node", _INITIALIZER: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


Piece = bytes | Region


@dataclass(frozen=True, kw_only=True, slots=True)
class Inlined:
    """What ONNX Runtime is given.

    Attributes:
        pieces: The graph: these one behind the other.
        tables: What is fed as inputs, see rule 2.
        apart: What is handed over beside the graph, see rule 3.
    """

    pieces: tuple[Piece, ...]
    tables: tuple[Weight, ...]
    apart: tuple[Weight, ...]


def inline(graph: bytes, sizes: Mapping[str, int], *, most_bytes: int = MOST_BYTES) -> Inlined:
    """Return a graph's bytes with its external data in their places.

    Args:
        graph: An ``.onnx`` file.
        sizes: Bytes of the files that it may read, by name.
        most_bytes: Largest message.

    Raises:
        ValueError: It is no graph, or it reads what is not there.
    """
    try:
        return _inlined(memoryview(graph), sizes, most_bytes)
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError("it is no graph") from error


def _inlined(model: memoryview, sizes: Mapping[str, int], most_bytes: int) -> Inlined:
    main = next((field.content for field in fields(model) if field.number == _GRAPH), model[:0])
    tensors = [f.content for f in fields(main) if f.number == _INITIALIZER and f.kind == DELIMITED]
    weights = [w for w in (_weight(tensor, sizes) for tensor in tensors) if w is not None]
    tables = _tables(main, weights)
    rest = [weight for weight in weights if weight not in tables]
    apart = _too_much(rest, most_bytes - len(model))
    change = _Change(
        sizes=sizes,
        tables=tuple(tables),
        apart=frozenset(weight.name for weight in apart),
    )
    return Inlined(
        pieces=tuple(_joined(change.message(model, "model"))),
        tables=tuple(tables),
        apart=tuple(apart),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What becomes of a graph."""

    sizes: Mapping[str, int]
    tables: tuple[Weight, ...]
    apart: frozenset[str]

    def message(self, message: memoryview, kind: str) -> Iterator[Piece]:
        """Give the pieces of a changed message."""
        if kind == "tensor":
            yield from self._tensor(message)
            return
        for field in fields(message):
            nested = _NESTED[kind].get(field.number) if field.kind == DELIMITED else None
            if nested is None:
                yield bytes(field.whole)
            elif not (kind == "main" and self._is_table(field)):
                pieces = list(self.message(field.content, nested))
                yield head(field.number, sum(map(_size, pieces)))
                yield from pieces
        if kind == "main":
            yield b"".join(delimited(_GRAPH_INPUT, _input(table)) for table in self.tables)

    def _is_table(self, field: Field) -> bool:
        if field.number != _INITIALIZER or not self.tables:
            return False
        return _name(field.content) in {table.name for table in self.tables}

    def _tensor(self, tensor: memoryview) -> Iterator[Piece]:
        weight = _weight(tensor, self.sizes)
        if weight is None or weight.name in self.apart:
            yield bytes(tensor)
            return
        dropped = (_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION)
        yield b"".join(field.whole for field in fields(tensor) if field.number not in dropped)
        yield head(_RAW_DATA, weight.region.size)
        yield weight.region


def _weight(tensor: memoryview, sizes: Mapping[str, int]) -> Weight | None:
    """Return what a tensor says of its external data, or None if it has none."""
    shape: list[int] = []
    name, data_type, is_external = "", 0, False
    entries: dict[str, str] = {}
    for field in fields(tensor):
        match field.number:
            case 1:  # dims
                packed = field.kind == DELIMITED
                shape += varints(field.content) if packed else [field.number_value]
            case 2:
                data_type = field.number_value
            case 8:
                name = field.text
            case 13:  # external_data
                key, value = _entry(field.content)
                entries[key] = value
            case 14:  # data_location
                is_external = field.number_value == _IS_EXTERNAL
    if not is_external:
        return None
    region = _region(name, entries, sizes)
    return Weight(name=name, data_type=data_type, shape=tuple(shape), region=region)


def _region(name: str, entries: Mapping[str, str], sizes: Mapping[str, int]) -> Region:
    file = entries.get("location", "")
    if file not in sizes:
        raise ValueError(f"'{name}' lies in '{file}', which is not there")
    start = int(entries.get("offset", "0"))
    size = int(entries.get("length", sizes[file] - start))
    if start < 0 or size < 0 or start + size > sizes[file]:
        raise ValueError(f"'{name}' lies behind the end of '{file}'")
    return Region(file=file, start=start, size=size)


def _entry(message: memoryview) -> tuple[str, str]:
    texts = {field.number: field.text for field in fields(message)}
    return texts.get(1, ""), texts.get(2, "")


def _tables(main: memoryview, weights: list[Weight]) -> list[Weight]:
    least = sum(weight.region.size for weight in weights) / _TABLE_SHARE
    large = [w for w in weights if w.region.size >= least and _can_be_table(w)]
    if not large:
        return []
    gathered, used = _uses(main, is_main=True)
    return [weight for weight in large if weight.name in gathered - used]


def _can_be_table(weight: Weight) -> bool:
    return weight.data_type in _TABLE_TYPES and weight.is_array


def _uses(graph: memoryview, *, is_main: bool) -> tuple[set[str], set[str]]:
    """Return which values ``Gather`` reads from, and which have any other use."""
    gathered: set[str] = set()
    used: set[str] = set()
    for field in fields(graph):
        if field.number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            used.add(_first_text(field.content))
        elif field.number == 1:
            in_node, other = _uses_of_node(field.content)
            gathered |= in_node
            used |= other
    return (gathered, used) if is_main else (set(), gathered | used)


def _uses_of_node(node: memoryview) -> tuple[set[str], set[str]]:
    inputs: list[str] = []
    operator, domain = "", ""
    inner: set[str] = set()
    for field in fields(node):
        match field.number:
            case 1:
                inputs.append(field.text)
            case 4:
                operator = field.text
            case 5:  # an attribute
                for part in fields(field.content):
                    if _NESTED["attribute"].get(part.number) == "graph":
                        inner |= _uses(part.content, is_main=False)[1]
            case 7:
                domain = field.text
    count = 1 if operator == "Gather" and domain in ("", "ai.onnx") else 0
    return set(inputs[:count]), set(inputs[count:]) | inner


def _too_much(weights: list[Weight], room: int) -> list[Weight]:
    """Return the largest weights, as many as leave the rest no larger than ``room``."""
    apart = []
    total = sum(weight.region.size for weight in weights)
    arrays = [weight for weight in weights if weight.is_array]
    for weight in sorted(arrays, key=lambda weight: weight.region.size, reverse=True):
        if total <= room:
            break
        apart.append(weight)
        total -= weight.region.size
    return apart


def _input(table: Weight) -> bytes:
    """Return the ``ValueInfoProto`` of a table."""
    sizes = b"".join(delimited(1, varint_field(1, size)) for size in table.shape)
    tensor = varint_field(1, table.data_type) + delimited(2, sizes)
    return delimited(1, table.name.encode()) + delimited(2, delimited(1, tensor))


def _name(tensor: memoryview) -> str:
    return next((field.text for field in fields(tensor) if field.number == 8), "")  # noqa: PLR2004


def _first_text(message: memoryview) -> str:
    return next((field.text for field in fields(message) if field.number == 1), "")


def _size(piece: Piece) -> int:
    return piece.size if isinstance(piece, Region) else len(piece)


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    together: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, Region):
            yield b"".join(together)
            together = []
            yield piece
        else:
            together.append(piece)
    yield b"".join(together)
