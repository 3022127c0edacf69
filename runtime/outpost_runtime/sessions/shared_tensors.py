"""Tensors between two processes: bytes in a shared memory file, descriptions on a socket.

Each direction has a file without a name (``memfd``) that its writer makes larger when it
must, and one message at a time: a length (4 bytes, little-endian) and JSON, in which a
tensor is ``{"name", "datatype", "shape", "offset", "size"}``. What a file holds is valid
until the next message in its direction.
"""

import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from outpost_runtime.raw_tensors import from_raw, to_raw
from outpost_runtime.tensors import Array, datatype_of

MOST_BYTES = 1 << 20
"""Of one message."""

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 64
_SMALLEST = 1 << 16


class SharedFile:
    """A memory file, mapped as far as it goes."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = sealed_file("tensors") if descriptor is None else descriptor
        self._memory: mmap.mmap | None = None

    def put(self, tensors: Mapping[str, Array]) -> list[dict[str, Any]]:
        """Write tensors; returns their descriptions."""
        described: list[dict[str, Any]] = []
        parts, end = [], 0
        for name, array in tensors.items():
            part = array if _is_plain(array) else np.frombuffer(to_raw(array), np.uint8)
            described.append(
                {
                    "name": name,
                    "datatype": datatype_of(array.dtype),
                    "shape": list(array.shape),
                    "offset": end,
                    "size": part.nbytes,
                }
            )
            parts.append(part)
            end += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        memory = self._reaching(end, grow=True)
        for table, part in zip(described, parts, strict=True):
            place = np.frombuffer(memory, part.dtype, part.size, table["offset"])
            place[:] = part.ravel()
        return described

    def get(self, described: Iterable[Mapping[str, Any]]) -> dict[str, Array]:
        """Return views of described tensors, valid until the writer's next message."""
        tables = list(described)
        end = max((table["offset"] + table["size"] for table in tables), default=0)
        memory = memoryview(self._reaching(end, grow=False) if end else b"")
        return {
            table["name"]: from_raw(
                table["name"],
                table["datatype"],
                tuple(table["shape"]),
                memory[table["offset"] : table["offset"] + table["size"]],
            )
            for table in tables
        }

    def close(self) -> None:
        """Close the file; its memory goes with the last view."""
        self._memory = None
        os.close(self.descriptor)

    def _reaching(self, end: int, *, grow: bool) -> mmap.mmap:
        if self._memory is None or len(self._memory) < end:
            if grow:
                os.ftruncate(self.descriptor, max(2 * end, _SMALLEST))
            self._memory = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return self._memory


def sealed_file(name: str) -> int:
    """Return the descriptor of a new memory file; whoever asks closes it.

    Nobody can make it smaller, which would end whoever has it mapped, nor keep others from making
    it larger or from writing there.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


def send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message."""
    text = json.dumps(message).encode()
    channel.sendall(_LENGTH.pack(len(text)) + text)


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """Return the next message, or None when the other side has gone.

    Raises:
        ValueError: What came is no message.
    """
    head = _exactly(channel, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    text = _exactly(channel, length)
    if text is None:
        return None
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise ValueError("a message in which too much is nested") from error
    if isinstance(message, dict):
        return message
    raise ValueError("a message that is no table")


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = channel.recv(count - len(parts))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def _is_plain(array: Array) -> bool:
    return array.dtype.kind in "biuf" and array.dtype.isnative and array.flags.c_contiguous
