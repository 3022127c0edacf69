"""Fetchers in memory, with the failures that a test asks for."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from outpost_runtime.errors import FetchError, NotFoundError


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes without order, the same every time."""
    return hashlib.shake_256(str(seed).encode()).digest(size)


@dataclass(kw_only=True)
class MemoryFetcher:
    """Files by path, given in pieces.

    Attributes:
        cuts: Bytes after which the next reads fail, one each; None for a read that does not.
        error: What they fail with.
        reads: What was asked: path and start.
    """

    files: dict[str, bytes]
    name: str = "memory"
    piece: int = 1000
    cuts: list[int | None] = field(default_factory=list)
    error: FetchError = field(default_factory=lambda: FetchError("The source failed."))
    reads: list[tuple[str, int]] = field(default_factory=list)
    given: int = 0

    @property
    def label(self) -> str:
        return self.name

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        self.reads.append((path, start))
        cut = self.cuts.pop(0) if self.cuts else None
        if path not in self.files:
            raise NotFoundError(f"{self.name} has no {path}.")
        data = self.files[path]
        if len(data) > limit or start > len(data):
            raise FetchError(f"{path} of {self.name} is not as asked.", retry_after=float("inf"))
        end = len(data) if cut is None else min(len(data), start + cut)
        for begin in range(start, end, self.piece):
            piece = data[begin : min(end, begin + self.piece)]
            self.given += len(piece)
            yield piece
        if cut is not None:
            raise self.error
