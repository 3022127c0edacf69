"""A fetcher under a bandwidth cap, which several may share.

Reading slowly is not enough: the system takes in what nobody has read yet, so that a block comes
at the line's speed and then nothing for a while. So :func:`window_under` says how much it may take.
"""

import threading
import time
from collections.abc import Callable, Iterator

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.fetch import Fetcher

LEAST_RATE = 1024
"""Lowest cap in bytes a second: below it a server would rightly hang up."""

_WINDOW_SECONDS = 0.5
_SMALLEST_WINDOW = 4 << 10
_LARGEST_WINDOW = 208 << 10
"""What Linux grants a program that asks (``net.core.rmem_max``), if nobody has changed it."""


def window_under(bytes_per_second: float) -> int | None:
    """Return how many bytes one of two connections may hold unread under a cap.

    It is worth half a second of the cap, so that the two keep up with it over lines of up to a
    second there and back. None where the system would not grant as much: it then takes about as
    much of its own accord, and never more than a block.
    """
    window = int(_WINDOW_SECONDS * bytes_per_second)
    return None if window > _LARGEST_WINDOW else max(window, _SMALLEST_WINDOW)


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
