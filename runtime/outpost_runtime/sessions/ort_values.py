"""Tensors that ONNX Runtime's Python interface does not take as they are: BYTES and BF16.

Its strings are Unicode text; ours are bytes, as on the wire, and must be UTF-8. bfloat16 goes
in as 16-bit numbers with ONNX's type beside them, and comes out by its address.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from outpost_runtime.errors import ExecutionError, InvalidInputError
from outpost_runtime.tensors import Array, TensorSpec

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_SPECIAL = ("BYTES", "BF16")


def is_special(spec: TensorSpec) -> bool:
    """Whether a tensor goes through this file."""
    return spec.datatype in _SPECIAL


def to_ort(spec: TensorSpec, array: Array) -> Any:
    """Return what ONNX Runtime takes as a tensor; of texts it makes no values itself.

    Raises:
        InvalidInputError: An element of BYTES is not UTF-8.
    """
    if spec.datatype == "BF16":
        bits = array.copy(order="C").view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    if spec.datatype == "BYTES":
        return _mapped(array, lambda data: _decoded(spec, data))
    return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(order="C"))


def from_ort(spec: TensorSpec, value: Any) -> Array:
    """Return what ONNX Runtime gave, as a tensor of its own.

    Raises:
        ExecutionError: The model's text is not Unicode.
    """
    if spec.datatype == "BF16":
        size = value.tensor_size_in_bytes()
        data = bytes((ctypes.c_char * size).from_address(value.data_ptr())) if size else b""
        return np.frombuffer(data, ml_dtypes.bfloat16).reshape(value.shape())
    try:
        array: Array = value if isinstance(value, np.ndarray) else value.numpy()
    except UnicodeDecodeError as error:
        raise ExecutionError(f"The model's output '{spec.name}' is not UTF-8.") from error
    return _mapped(array, lambda text: text.encode()) if spec.datatype == "BYTES" else array


def _mapped(array: Array, change: Callable[[Any], object]) -> Array:
    mapped = np.empty(array.size, np.object_)
    mapped[:] = [change(item) for item in array.ravel()]
    return mapped.reshape(array.shape)


def _decoded(spec: TensorSpec, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"An element of '{spec.name}' is not UTF-8.") from error
