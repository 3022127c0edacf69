"""What Outpost sends: of each block that changed, the difference from the one before it.

This is the plain form of docs/update-format.md: blocks of 1 MiB from every tensor's start,
differences of integers, zstd; without encryption and without the lists of blocks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray
from onnx import TensorProto
from outpost_export.grid import layout_of
from outpost_runtime.bundle import FolderBundle
from outpost_runtime.manifest import MANIFEST_NAME

_BLOCK = 1 << 20
_LEVEL = 19
_SIGN = np.uint32(1 << 31)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """Where a tensor lies in a file.

    Attributes:
        kind: "int4", "int8" or "float".
    """

    name: str
    offset: int
    length: int
    kind: str


def size_of(old: FolderBundle, new: FolderBundle) -> int:
    """Return the bytes that lead from one bundle to another."""
    names = (*new.manifest.files, MANIFEST_NAME)
    return sum(_file_size(old.path(name), new.path(name)) for name in names)


def _file_size(old: Path, new: Path) -> int:
    if old.is_file() and old.read_bytes() == new.read_bytes():
        return 0
    tensors = {".data": _external, ".safetensors": _safetensors}.get(new.suffix)
    if tensors is None or not old.is_file():
        return _zstd(new.read_bytes())
    before = {tensor.name: tensor for tensor in tensors(old)}
    old_data, new_data = (np.fromfile(path, np.uint8) for path in (old, new))
    size = 0
    for tensor in tensors(new):
        same = before.get(tensor.name)
        part = _part(new_data, tensor)
        if same is None or same.length != tensor.length:
            size += len(part)
        else:
            size += sum(_blocks(_part(old_data, same), part, tensor.kind))
    return size


def _part(data: Bytes, tensor: Tensor) -> Bytes:
    return data[tensor.offset : tensor.offset + tensor.length]


def _blocks(old: Bytes, new: Bytes, kind: str) -> Iterator[int]:
    for start in range(0, len(new), _BLOCK):
        before, after = old[start : start + _BLOCK], new[start : start + _BLOCK]
        if (before != after).any():
            yield min(len(after), _zstd(_difference(before, after, kind)))


def _difference(old: Bytes, new: Bytes, kind: str) -> bytes:
    if kind == "int8":
        return (new - old).tobytes()
    if kind == "int4":
        low, high = (new & 15) - (old & 15) & 15, (new >> 4) - (old >> 4) & 15
        return (low | high << 4).tobytes()
    ordered = [_ordered(part.view(np.uint32)) for part in (old, new)]
    planes: bytes = (ordered[1] - ordered[0]).view(np.uint8).reshape(-1, 4).T.tobytes()
    return planes


def _ordered(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return integers in the order of the floats."""
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _zstd(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=_LEVEL).compress(data))


def _external(path: Path) -> Iterator[Tensor]:
    for name, kind, _, offset, length in layout_of(path.with_suffix("")):
        integers = "int4" if name.endswith("_Q4") else "int8"
        yield Tensor(
            name=name,
            offset=offset,
            length=length,
            kind="float" if kind == TensorProto.FLOAT else integers,
        )


def _safetensors(path: Path) -> Iterator[Tensor]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        kind = "float" if entry["dtype"] == "F32" else "int8"
        yield Tensor(name=name, offset=start + first, length=last - first, kind=kind)
