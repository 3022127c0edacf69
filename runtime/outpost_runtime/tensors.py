"""Tensors as the outside sees them: names, datatypes and shapes.

Datatypes are those of the Open Inference Protocol (V2), in manifests as on the wire.
An element of BYTES is a Python ``bytes`` object in a numpy array of objects.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import InvalidInputError

Array = NDArray[Any]

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Gives an array of zeros for a session to bind: ``numpy.zeros``, where the session is in this
process; it raises MemoryError."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
_DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """What a model expects or gives under one name.

    Attributes:
        datatype: A key of :data:`NUMPY_TYPES`.
        shape: Sizes; None is a dimension of any size.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the elements."""
        return NUMPY_TYPES[self.datatype]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits."""
        if len(shape) != len(self.shape):
            return False
        for wanted, size in zip(self.shape, shape, strict=True):  # twice as fast as all()
            if wanted is not None and wanted != size:
                return False
        return True

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.datatype} [{sizes}]"


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a numpy dtype.

    Raises:
        InvalidInputError: The protocol has no such type.
    """
    try:
        return _DATATYPES[dtype]
    except KeyError:
        raise InvalidInputError(f"Tensors of dtype {dtype} are not supported.") from None


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Refuse feeds that do not match a model's inputs.

    Raises:
        InvalidInputError: An input is missing, unknown, or of another dtype or shape.
    """
    expected = {spec.name: spec for spec in specs}
    for name in feeds:
        if name not in expected:
            raise InvalidInputError(
                f"The model has no input '{name}'; its inputs are {', '.join(expected)}."
            )
    for name, spec in expected.items():
        if name not in feeds:
            raise InvalidInputError(f"Input '{name}' is missing ({spec}).")
        array = feeds[name]
        if array.dtype != spec.dtype or not spec.admits(array.shape):
            raise InvalidInputError(
                f"Input '{name}' is {datatype_of(array.dtype)} {list(array.shape)}; "
                f"the model expects {spec}."
            )
