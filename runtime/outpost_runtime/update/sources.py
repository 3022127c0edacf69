"""From what a box was told to fetchers: mirrors of the site first, then the repository."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.fetch.retry import RetryingFetcher
from outpost_runtime.update.fetch.sources import open_source
from outpost_runtime.update.fetch.throttle import Bandwidth, ThrottledFetcher, window_under
from outpost_runtime.update.planning import WORKERS
from outpost_runtime.update.policy import UpdatePolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """One fetcher for each connection, all of the same sources in the same order."""

    fetchers: tuple[Fetcher, ...]
    failovers: tuple[FailoverFetcher, ...] = ()

    def blame(self, fetcher: Fetcher) -> bool:
        """Put aside what a fetcher read from last; says whether it has another source."""
        place = self.fetchers.index(fetcher)
        return bool(self.failovers) and self.failovers[place].blame()

    def take_back(self) -> None:
        """Ask the sources again that were blamed, for other files, where no other is left."""
        for failover in self.failovers:
            failover.take_back()


def open_sources(
    locations: Sequence[str],
    policy: UpdatePolicy,
    mirrors: Sequence[str] = (),
    sleep: Callable[[float], object] = time.sleep,
) -> Sources:
    """Open sources.

    Args:
        locations: URLs or folders, in order.
        mirrors: Addresses of mirrors, which are asked first and trusted for nothing.
        sleep: Waits before a source is asked again, and under a bandwidth cap; returning true
            gives up.

    Raises:
        ConfigurationError: A location is of no use.
    """
    rate = policy.bytes_per_second
    window = None if rate is None else window_under(rate)
    failovers = tuple(_failover((*mirrors, *locations), window, sleep) for _ in range(WORKERS))
    if rate is None:
        return Sources(fetchers=failovers, failovers=failovers)
    bandwidth = Bandwidth(rate, sleep=sleep)
    throttled = tuple(ThrottledFetcher(each, bandwidth) for each in failovers)
    return Sources(fetchers=throttled, failovers=failovers)


def mirrors_near_by() -> tuple[str, ...]:
    """Return the addresses of mirrors that say that they are on this network."""
    from outpost_runtime.update.fetch.mdns import find_mirrors  # noqa: PLC0415 - where it is used

    return tuple(f"http://{address}" for address in find_mirrors())


def _failover(
    locations: Sequence[str], window: int | None, sleep: Callable[[float], object]
) -> FailoverFetcher:
    opened = [open_source(each, window=window) for each in locations]
    return FailoverFetcher([RetryingFetcher(each, sleep=sleep) for each in opened])
