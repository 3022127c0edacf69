"""The golden file: safetensors, with what safetensors does not have.

BYTES tensors are stored as UINT8 [shape of the tensor, 4 + longest element]: the length
of each element in four bytes, little-endian, its bytes, zeros. The mark ``bytes:`` stands
before their names.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError
from outpost_runtime.tensors import NUMPY_TYPES, Array

_MARK = "bytes:"
_LENGTH = np.dtype("<u4")
_DATATYPES = {"BOOL": "BOOL", "BF16": "BF16", "F16": "FP16", "F32": "FP32", "F64": "FP64"} | {
    f"{short}{bits}": f"{name}{bits}"
    for short, name in (("U", "UINT"), ("I", "INT"))
    for bits in (8, 16, 32, 64)
}


def save(path: Path, tensors: dict[str, Array]) -> None:
    """Write golden tensors; equal tensors give equal bytes."""
    path.write_bytes(encode(tensors))


def encode(tensors: dict[str, Array]) -> bytes:
    """Return the bytes of a golden file; equal tensors give equal bytes."""
    stored = {}
    for name, array in tensors.items():
        marked = array.dtype == np.object_
        stored[_MARK + name if marked else name] = _packed(array) if marked else array
    data: bytes = safetensors.numpy.save(stored)
    return data


def load(path: Path) -> dict[str, Array]:
    """Read golden tensors.

    Raises:
        BundleError: The file is not a golden file.
    """
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


def of_bundle(bundle: Bundle) -> dict[str, Array]:
    """Read a bundle's golden tensors.

    Raises:
        BundleError: The file is not a golden file, or not the one that the manifest lists.
    """
    name = bundle.manifest.evidence.golden
    return _decoded(bundle.read(name), bundle.contents.place(name))


def _decoded(data: bytes, place: str) -> dict[str, Array]:
    try:
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # safetensors is untyped
        return dict(_tensor(name, entry) for name, entry in found)
    except (ValueError, LookupError, safetensors.SafetensorError) as error:
        raise BundleError(f"{place} cannot be read: {error}.") from error


def _tensor(name: str, entry: Any) -> tuple[str, Array]:
    if entry["dtype"] not in _DATATYPES:
        raise ValueError(f"'{name}' has the unknown type {entry['dtype']}")
    dtype = NUMPY_TYPES[_DATATYPES[entry["dtype"]]]
    array: Array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    if not name.startswith(_MARK):
        return name, array.copy()  # writable, and aligned
    return name.removeprefix(_MARK), _unpacked(name, array)


def _packed(array: Array) -> Array:
    elements = [bytes(element) for element in array.reshape(-1)]
    longest = max(map(len, elements), default=0)
    packed = np.zeros((len(elements), _LENGTH.itemsize + longest), np.uint8)
    for row, element in zip(packed, elements, strict=True):
        prefixed = len(element).to_bytes(_LENGTH.itemsize, "little") + element
        row[: len(prefixed)] = np.frombuffer(prefixed, np.uint8)
    return packed.reshape(*array.shape, packed.shape[1])


def _unpacked(name: str, packed: Array) -> Array:
    if packed.dtype != np.uint8 or packed.ndim < 1 or packed.shape[-1] < _LENGTH.itemsize:
        raise ValueError(f"'{name}' does not hold elements with their lengths")
    elements = np.empty(packed.shape[:-1], np.object_)
    rows = packed.reshape(elements.size, packed.shape[-1])
    elements.reshape(-1)[:] = [_element(name, row.tobytes()) for row in rows]
    return elements


def _element(name: str, row: bytes) -> bytes:
    length = int.from_bytes(row[: _LENGTH.itemsize], "little")
    end = _LENGTH.itemsize + length
    if end > len(row) or any(row[end:]):
        raise ValueError(f"'{name}' has an element that is longer than its row, or shorter")
    return row[_LENGTH.itemsize : end]
