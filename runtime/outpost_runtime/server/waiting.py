"""The event loop waits for what other threads do."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

LARGE_BYTES = 256 << 10
"""Reading or writing a message of more takes so long that other calls should not wait for it."""

T = TypeVar("T")


async def result_of(future: "Future[T]") -> T:
    """Return what a future of another thread gets; who stops waiting cancels it.

    Half of what ``asyncio.wrap_future`` takes, which chains two futures both ways.
    """
    if future.done():
        return future.result()
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    try:
        await done.wait()
        return future.result()
    finally:
        future.cancel()


async def aside_if_large(size: int, act: Callable[[], T]) -> T:
    """Do something that takes time with the size of what it reads or writes, in bytes."""
    return await asyncio.to_thread(act) if size > LARGE_BYTES else act()
