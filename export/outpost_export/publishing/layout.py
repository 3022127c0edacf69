"""Where tensors lie in the files of a bundle. Pure: bytes in, places out.

* ``.onnx``: tensors within the graph's file, and those that it keeps in other files; several graphs
  may share one, such as a decoder's with adapters and without.
* ``.safetensors``: as its header says.
* Other files have none.

A file that is not what its name says has none either: it is shipped like any other.
"""

import json
import math
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from outpost_runtime.update.elements import Kind

from outpost_export.publishing.onnx_layout import StoredTensor, read_tensors

_ONNX_KINDS = {1: Kind.FLOAT32, 10: Kind.FLOAT16, 16: Kind.BFLOAT16, 21: Kind.INT4, 22: Kind.INT4}
_SAFETENSORS_KINDS = {"F32": Kind.FLOAT32, "F16": Kind.FLOAT16, "BF16": Kind.BFLOAT16}
_HEADER_LENGTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """Where a tensor lies in its file.

    Attributes:
        start: Its first byte.
        size: How many there are.
        kind: How numbers lie there; INT8 for every type of which nothing better is known.
        width: Numbers in a row, the last dimensions together; None for fewer than two dimensions.
    """

    start: int
    size: int
    kind: Kind
    width: int | None


def tensors_of(files: Mapping[str, memoryview]) -> dict[str, list[Tensor]]:
    """Return the tensors of each file of a bundle, in the order of their places.

    Args:
        files: The bytes of all files by name; those of weights are looked up, not read.
    """
    found: dict[str, set[Tensor]] = defaultdict(set)
    for name, data in files.items():
        reader = _READERS.get(posixpath.splitext(name)[1])
        if reader is None:
            continue
        try:
            for where, tensor in reader(name, data):
                found[where].add(tensor)
        except (ValueError, LookupError, TypeError, AttributeError):  # not what its name says
            found[name].clear()
    return {name: _inside(found[name], len(data)) for name, data in files.items()}


def _inside(tensors: set[Tensor], size: int) -> list[Tensor]:
    fitting = (t for t in tensors if t.start >= 0 < t.size and t.start + t.size <= size)
    return sorted(fitting, key=lambda t: (t.start, t.size, t.kind, t.width or 0))


def _of_onnx(name: str, data: memoryview) -> Iterator[tuple[str, Tensor]]:
    for stored in read_tensors(data):
        kind = Kind.INT4 if stored.packed else _ONNX_KINDS.get(stored.datatype, Kind.INT8)
        width = math.prod(stored.shape[1:]) * (2 if stored.packed else 1)
        tensor = Tensor(
            start=stored.start,
            size=_size(stored, kind) if stored.size is None else stored.size,
            kind=kind,
            width=width if len(stored.shape) > 1 else None,
        )
        if stored.location is None:
            yield name, tensor
        else:
            yield (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), stored.location)),
                tensor,
            )


def _size(stored: StoredTensor, kind: Kind) -> int:
    # ONNX writes the length beside the offset; it may be left out, and is only a hint here.
    numbers = math.prod(stored.shape)
    return -(-numbers // 2) if kind is Kind.INT4 and not stored.packed else numbers * kind.bytes


def _of_safetensors(name: str, data: memoryview) -> Iterator[tuple[str, Tensor]]:
    begin = _HEADER_LENGTH + int.from_bytes(data[:_HEADER_LENGTH], "little")
    header = json.loads(bytes(data[_HEADER_LENGTH:begin]))
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        shape = entry["shape"]
        yield (
            name,
            Tensor(
                start=begin + start,
                size=end - start,
                kind=_SAFETENSORS_KINDS.get(entry["dtype"], Kind.INT8),
                width=math.prod(shape[1:]) if len(shape) > 1 else None,
            ),
        )


_READERS = {".onnx": _of_onnx, ".safetensors": _of_safetensors}
