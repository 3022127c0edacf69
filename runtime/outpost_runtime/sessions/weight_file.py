"""Weights in a memory file (``memfd``): written once, mapped by whoever has its descriptor."""

import mmap
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from outpost_runtime.sessions.weight import Region, Weight, places
from outpost_runtime.tensors import Array


def write(weights: Sequence[Weight], read: Callable[[Region], Iterable[bytes]]) -> int:
    """Return the descriptor of a new memory file with these weights; whoever asks closes it."""
    descriptor = os.memfd_create("weights", os.MFD_CLOEXEC)
    try:
        for offset, weight in places(weights):
            os.lseek(descriptor, offset, os.SEEK_SET)
            for piece in read(weight.region):
                _write_all(descriptor, piece)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def arrays(descriptor: int, weights: Sequence[Weight]) -> dict[str, Array]:
    """Return weights as read-only arrays by name; the memory goes with the last one of them."""
    if not weights:
        return {}
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    return {weight.name: _array(memory, weight, offset) for offset, weight in places(weights)}


def _array(memory: mmap.mmap, weight: Weight, offset: int) -> Array:
    count = weight.region.size // weight.dtype.itemsize
    return np.frombuffer(memory, weight.dtype, count, offset).reshape(weight.shape)


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
