"""A fetcher under a bandwidth cap, which several may share."""

import threading
import time
from collections.abc import Callable, Iterator

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.fetch import Fetcher

LEAST_RATE = 1024
"""Lowest cap in bytes a second: below it a server would rightly hang up."""


class Bandwidth:
    """So many bytes a second, over all who share it; unused time is not saved up.

    Raises:
        ConfigurationError: The cap is below :data:`LEAST_RATE`.
    """

    def __init__(
        self,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if bytes_per_second < LEAST_RATE:
            raise ConfigurationError(
                f"A bandwidth cap of {bytes_per_second:g} bytes a second is too low.",
                hint=f"Choose {LEAST_RATE} or more.",
            )
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count bytes, and wait until the cap allows as many."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


class ThrottledFetcher:
    """Another fetcher, read no faster than a bandwidth allows."""

    def __init__(self, fetcher: Fetcher, bandwidth: Bandwidth) -> None:
        self._fetcher = fetcher
        self._bandwidth = bandwidth

    @property
    def label(self) -> str:
        """The other fetcher's."""
        return self._fetcher.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        for piece in self._fetcher.read(path, start=start, limit=limit):
            yield piece  # first: what came must be kept even if the wait is cut short
            self._bandwidth.take(len(piece))
