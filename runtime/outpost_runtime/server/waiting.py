"""The event loop waits for what an engine's thread makes."""

import asyncio
from concurrent.futures import Future
from typing import TypeVar

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
