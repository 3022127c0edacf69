"""A mirror in a thread of its own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from outpost_runtime.address import Address
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.mirror.cache import MirrorCache
from outpost_runtime.update.mirror.service import Mirror


@contextlib.contextmanager
def running_mirror(
    fetchers: Sequence[Fetcher],
    folder: Path,
    *,
    limit: int = 1 << 30,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Mirror on a port of its own; gives the URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    async def make() -> Mirror:
        return Mirror(fetchers, MirrorCache(folder, limit, spare=0), clock=clock)

    mirror = wait(make())
    try:
        port = wait(mirror.start(Address(host="127.0.0.1", port=0)))
        yield f"http://127.0.0.1:{port}"
    finally:
        wait(mirror.stop())
        wait(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
