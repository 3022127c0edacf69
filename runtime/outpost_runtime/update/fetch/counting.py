"""A fetcher that counts what is asked and what comes."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outpost_runtime.update.fetch import Fetcher


@dataclass(kw_only=True, slots=True)
class Traffic:
    """What was moved; several fetchers of several threads may count on one.

    Attributes:
        requests: Reads that were begun.
        bytes: Bytes of files that came.
    """

    requests: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, count: int = 0) -> None:
        """Count."""
        with self._lock:
            self.requests += requests
            self.bytes += count


class CountingFetcher:
    """Another fetcher, counted.

    Args:
        progress: Called with the number of bytes of every piece that came.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        traffic: Traffic,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._traffic = traffic
        self._progress = progress

    @property
    def label(self) -> str:
        """The other fetcher's."""
        return self._fetcher.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        self._traffic.add(requests=1)
        for piece in self._fetcher.read(path, start=start, limit=limit):
            self._traffic.add(count=len(piece))
            if self._progress:
                self._progress(len(piece))
            yield piece
