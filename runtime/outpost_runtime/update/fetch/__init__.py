"""Fetcher: bytes of a repository's files, from wherever it lies.

This file is the contract; every other file of the folder is one way to keep it, or a fetcher
wrapped around others. A fetcher is trusted for nothing: who asked checks what came.
"""

from collections.abc import Iterator
from typing import Protocol

from outpost_runtime.errors import FetchError


class Fetcher(Protocol):
    """One source of a repository's files. May be used by one thread at a time."""

    @property
    def label(self) -> str:
        """The source, for people; free of passwords and tokens."""

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end, in pieces of at most 1 MiB.

        Args:
            path: Relative to the repository, such as ``metadata/timestamp.json``.
            start: How many bytes are here already; equal to the file's size gives nothing.
            limit: Largest size of the whole file; a longer one is refused.

        Raises:
            NotFoundError: The source has no such file.
            FetchError: The source failed, is too slow, or its file is larger than ``limit``.
                What was given before stays good for going on from there.
        """


def read_whole(fetcher: Fetcher, path: str, *, limit: int) -> bytes:
    """Return a small file.

    Raises:
        NotFoundError: The source has no such file.
        FetchError: The source failed, or the file is larger than ``limit`` bytes.
    """
    data = bytearray()
    for piece in fetcher.read(path, limit=limit):
        data += piece
        if len(data) > limit:
            raise FetchError(f"{path} of {fetcher.label} is larger than {limit:,} bytes.")
    return bytes(data)
