"""From what a box was told to one fetcher: mirrors of the site first, then the repository."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.fetch.mdns import discover
from outpost_runtime.update.fetch.retry import RetryFetcher
from outpost_runtime.update.fetch.sources import open_source
from outpost_runtime.update.fetch.throttle import Bandwidth, ThrottledFetcher
from outpost_runtime.update.policy import UpdatePolicy


@contextmanager
def fetcher_of(locations: Sequence[str], policy: UpdatePolicy) -> Iterator[Fetcher]:
    """Give a fetcher that goes on from one source to the next.

    Args:
        locations: URLs or folders, in order.

    Raises:
        ConfigurationError: A location is of no use.
    """
    mirrors = discover() if policy.mirrors else []
    sources: list[Fetcher] = [RetryFetcher(open_source(each)) for each in (*mirrors, *locations)]
    fetcher: Fetcher = FailoverFetcher(sources)
    if policy.bytes_per_second is not None:
        fetcher = ThrottledFetcher(fetcher, Bandwidth(policy.bytes_per_second))
    yield fetcher
