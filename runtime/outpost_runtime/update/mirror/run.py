"""A mirror from its settings, until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.address import Address
from outpost_runtime.update.fetch.mdns import announced
from outpost_runtime.update.fetch.retry import Backoff, RetryingFetcher
from outpost_runtime.update.fetch.sources import open_source
from outpost_runtime.update.mirror.cache import MirrorCache
from outpost_runtime.update.mirror.service import Mirror

UPSTREAM_CONNECTIONS = 4
_BACKOFF = Backoff(attempts=3, longest_seconds=5.0, total_seconds=60.0)
"""Boxes wait meanwhile, and have other sources."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorSettings:
    """What a mirror is told.

    Attributes:
        repository: A URL or a folder.
        limit: Most bytes to keep on disk.
        announce: Whether the network is told by mDNS.
    """

    repository: str
    folder: Path
    limit: int
    ca_bundle: Path | None
    announce: bool


def mirror_until_signal(settings: MirrorSettings, address: Address) -> None:
    """Mirror until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: The repository's URL or the address is of no use.
        StoreError: The folder cannot be used.
    """
    asyncio.run(_mirror(settings, address))


async def _mirror(settings: MirrorSettings, address: Address) -> None:
    fetchers = [
        RetryingFetcher(open_source(settings.repository, ca_bundle=settings.ca_bundle), _BACKOFF)
        for _ in range(UPSTREAM_CONNECTIONS)
    ]
    cache = MirrorCache(settings.folder, settings.limit)
    mirror = Mirror(fetchers, cache, clock=time.monotonic)
    port = await mirror.start(address)
    listening = Address(host=address.host, port=port)
    _LOG.info("mirroring %s on http://%s", fetchers[0].label, listening)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    announcement = announced(listening) if settings.announce else contextlib.nullcontext()
    # zeroconf has an event loop of its own, whose start and end must not wait for ours.
    await asyncio.to_thread(announcement.__enter__)
    try:
        await stop.wait()
    finally:
        _LOG.info("stopping")
        await asyncio.to_thread(announcement.__exit__, None, None, None)
        await mirror.stop()
