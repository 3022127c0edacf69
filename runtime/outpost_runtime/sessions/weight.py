"""A weight of a graph that lies outside of it: what it is, and where its bytes are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ALIGNMENT = 64
_DTYPES: Mapping[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
"""By ``TensorProto.DataType``: what numpy and ONNX Runtime both know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Bytes of a file."""

    file: str
    start: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A weight.

    Attributes:
        data_type: Of ``TensorProto``.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    region: Region

    @property
    def is_array(self) -> bool:
        """Whether numpy has such arrays, and the bytes are as many as one has."""
        known = self.data_type in _DTYPES
        return known and math.prod(self.shape) * self.dtype.itemsize == self.region.size

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of the array."""
        return np.dtype(_DTYPES[self.data_type])


def places(weights: Sequence[Weight]) -> Iterator[tuple[int, Weight]]:
    """Give offsets at which weights can lie one behind the other, each with its weight."""
    end = 0
    for weight in weights:
        yield end, weight
        end += -(-weight.region.size // _ALIGNMENT) * _ALIGNMENT


def described(weights: Sequence[Weight]) -> list[dict[str, Any]]:
    """Return weights as JSON can say them, without where they came from."""
    return [
        {"name": w.name, "data_type": w.data_type, "shape": w.shape, "size": w.region.size}
        for w in weights
    ]


def weights_of(tables: Sequence[Mapping[str, Any]]) -> tuple[Weight, ...]:
    """Return what was :func:`described`."""
    return tuple(
        Weight(
            name=table["name"],
            data_type=table["data_type"],
            shape=tuple(table["shape"]),
            region=Region(file="", start=0, size=table["size"]),
        )
        for table in tables
    )
