"""Memory that a session in another process can bind: allocated here, mapped there too.

One memory file (``memfd``) without a name, sealed against shrinking, which would end whoever has
it mapped. It only grows: what is bound lives as long as its model.
"""

import math
import mmap
import os
import weakref
from bisect import bisect_right, insort
from collections.abc import Mapping
from typing import Any

import numpy as np

from outpost_runtime.sessions.shared_tensors import sealed_file
from outpost_runtime.tensors import NUMPY_TYPES, Array, datatype_of

_EXTENT = 64 << 20
"""Mapped at least at once: every mapping holds a descriptor. What nobody writes takes no memory."""

_ALIGNMENT = 64

Place = Mapping[str, Any]
"""An array in the file, as a message has it: ``{"datatype", "shape", "offset"}``."""


class BoundMemory:
    """A memory file in which arrays lie; one process allocates, others look.

    Its descriptor is closed with it, its memory goes with the last array.

    Args:
        descriptor: Of the file that another process allocates in; None makes a new one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = sealed_file("bound") if descriptor is None else descriptor
        weakref.finalize(self, os.close, self.descriptor)
        # Address and offset of each extent, sorted. They stay mapped, so that no other array
        # ever gets an address that stands here.
        self._extents: list[tuple[int, int, mmap.mmap]] = []
        self._newest: mmap.mmap | None = None
        self._used = 0
        self._size = 0
        self._whole: mmap.mmap | None = None

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a new array that can be bound.

        Raises:
            MemoryError: There is not so much.
        """
        size = math.prod(shape) * dtype.itemsize
        if self._newest is None or self._used + size > len(self._newest):
            self._newest, self._used = self._extent(max(size, _EXTENT)), 0
        array = np.ndarray(shape, dtype, self._newest, self._used)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array

    def place_of(self, array: Array) -> Place | None:
        """Say where a C-contiguous array lies, or None if it lies elsewhere."""
        address = array.ctypes.data
        number = bisect_right(self._extents, address, key=lambda extent: extent[0]) - 1
        if number < 0:
            return None
        start, offset, memory = self._extents[number]
        if address + array.nbytes > start + len(memory):
            return None
        return {
            "datatype": datatype_of(array.dtype),
            "shape": array.shape,
            "offset": offset + address - start,
        }

    def at(self, place: Place) -> Array:
        """Return the array of a place that another process named."""
        shape, dtype = tuple(place["shape"]), NUMPY_TYPES[place["datatype"]]
        end = place["offset"] + math.prod(shape) * dtype.itemsize
        if self._whole is None or len(self._whole) < end:
            self._whole = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return np.ndarray(shape, dtype, self._whole, place["offset"])

    def _extent(self, size: int) -> mmap.mmap:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            mmap.mmap(-1, size).close()  # fails first: a file that has grown stays so
            # A look first: what has failed below, or another process, may have made it larger.
            if os.fstat(self.descriptor).st_size < self._size + size:
                os.ftruncate(self.descriptor, self._size + size)
            memory = mmap.mmap(self.descriptor, size, offset=self._size)
        except OSError as error:
            raise MemoryError(f"{size:,} bytes") from error
        insort(self._extents, (np.frombuffer(memory, np.uint8).ctypes.data, self._size, memory))
        self._size += size
        return memory
