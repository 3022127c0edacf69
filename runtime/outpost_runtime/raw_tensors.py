"""Tensors as bytes: little-endian, row-major; an element of BYTES with its length before it.

Source: the Open Inference Protocol, "Tensor Data" and its binary extension. Pure.
"""

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.tensors import NUMPY_TYPES, Array

MOST_DIMENSIONS = 32
MOST_ELEMENTS = 2**31
_LENGTH = struct.Struct("<I")
_ELEMENT_WEIGHT = 128
_MOST_MEASURED = 4096


def count_elements(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return how many elements a tensor has, before anything is made of it.

    Raises:
        InvalidInputError: The datatype is not known, or no tensor can have this shape.
    """
    if datatype not in NUMPY_TYPES:
        raise InvalidInputError(
            f"Input '{name}' has datatype '{datatype}'; known are {', '.join(NUMPY_TYPES)}."
        )
    if len(shape) > MOST_DIMENSIONS:
        raise InvalidInputError(f"Input '{name}' has {len(shape)} dimensions.")
    # Zeros are counted apart: what they empty must be no larger than anything else.
    count = math.prod(max(size, 1) for size in shape)
    if min(shape, default=0) < 0 or count > MOST_ELEMENTS:
        raise InvalidInputError(f"Input '{name}' has an impossible shape: {list(shape)}.")
    return 0 if 0 in shape else count


def from_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """Return the tensor whose bytes these are; a view of them where that is possible.

    Raises:
        InvalidInputError: There are more or fewer bytes than the shape takes.
    """
    count = count_elements(name, datatype, shape)
    if datatype == "BYTES":
        return _from_elements(name, shape, count, data)
    dtype = NUMPY_TYPES[datatype]
    expected = count * dtype.itemsize
    if len(data) != expected:
        raise InvalidInputError(
            f"Input '{name}' has {len(data)} bytes; {datatype} {list(shape)} takes {expected}."
        )
    # bfloat16 has no other byte order to ask for.
    order = dtype if datatype == "BF16" else dtype.newbyteorder("<")
    return np.frombuffer(data, order).astype(dtype, copy=False).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Return a tensor's bytes."""
    if array.dtype == np.object_:
        return b"".join(_LENGTH.pack(len(item)) + item for item in array.ravel())
    if array.dtype == NUMPY_TYPES["BF16"]:
        return array.tobytes()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def weight_of(array: Array) -> int:
    """Return about as many bytes as could be copied in the time that a tensor takes to write.

    Texts are written one by one, which costs more than their bytes. Of so many that measuring
    them would take long itself, their number says enough.
    """
    if array.dtype != np.object_:
        return array.nbytes
    weight = array.size * _ELEMENT_WEIGHT
    return weight if array.size > _MOST_MEASURED else weight + sum(map(len, array.flat))


def of_elements(shape: tuple[int, ...], elements: list[bytes]) -> Array:
    """Return a BYTES tensor of as many elements as its shape takes."""
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _from_elements(
    name: str, shape: tuple[int, ...], count: int, data: bytes | memoryview
) -> Array:
    # An element takes four bytes at least: the shape is bounded before anything is made of it.
    elements = list(_elements(name, memoryview(data))) if count * _LENGTH.size <= len(data) else []
    if len(elements) != count:
        raise InvalidInputError(
            f"Input '{name}' has {len(elements)} elements in {len(data)} bytes; "
            f"BYTES {list(shape)} takes {count}."
        )
    return of_elements(shape, elements)


def _elements(name: str, data: memoryview) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        begin = place + _LENGTH.size
        if begin > len(data):
            raise InvalidInputError(f"Input '{name}' ends within the length of an element.")
        place = begin + _LENGTH.unpack_from(data, place)[0]
        if place > len(data):
            raise InvalidInputError(f"Input '{name}' ends within an element.")
        yield bytes(data[begin:place])
