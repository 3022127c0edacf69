"""A fetcher that tries again: later and later, not for ever, and not all boxes at once."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.joining import joined


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """When to try again.

    Attributes:
        attempts: Failures in a row after which the source is given up.
        first_seconds: The longest wait after the first failure; each further one doubles it.
        longest_seconds: No wait is longer; a server that asks for a longer one is given up.
        total_seconds: Of one file; after that a failure is the last.
        progress: Bytes between two failures that make the second one count as a first again. What
            is smaller proves nothing: a source that gives a byte a time is given up.
    """

    attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 60.0
    total_seconds: float = 900.0
    progress: int = 64 << 10

    def wait(self, failures: int, retry_after: float | None, chance: float) -> float | None:
        """Return the seconds to wait after the n-th failure in a row, or None to give up.

        Args:
            failures: 1 for the first.
            retry_after: Seconds that the source asked for, if it did.
            chance: Between 0 and 1, so that boxes that failed together do not come back together.
        """
        if failures >= self.attempts or (retry_after or 0) > self.longest_seconds:
            return None
        usual = min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1))
        if retry_after is not None:
            return min(self.longest_seconds, retry_after * (1 + chance / 4))
        return usual * (0.5 + chance / 2)


class RetryingFetcher:
    """Another fetcher, asked again where it failed, from the byte that it had reached.

    Args:
        sleep: Waits so many seconds; returning true (as ``threading.Event.wait`` does when the
            event is set) gives up at once.
        clock: Seconds that only count up.
        chance: A random number between 0 and 1.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        backoff: Backoff | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._fetcher = fetcher
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._clock = clock
        self._chance = chance

    @property
    def label(self) -> str:
        """The other fetcher's."""
        return self._fetcher.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        failures, reached = 0, start
        end = self._clock() + self._backoff.total_seconds

        def again(error: FetchError | NotFoundError, done: int) -> Fetcher:
            nonlocal failures, reached
            if not isinstance(error, FetchError) or self._clock() >= end:
                raise error
            failures = 1 if done - reached >= self._backoff.progress else failures + 1
            reached = done
            wait = self._backoff.wait(failures, error.retry_after, self._chance())
            if wait is None or self._sleep(wait):
                raise error
            return self._fetcher

        return joined(self._fetcher, again, path, start=start, limit=limit)
