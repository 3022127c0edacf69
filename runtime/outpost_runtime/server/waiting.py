"""The event loop waits for what other threads do."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from outpost_runtime.errors import BusyError, DeadlineError
from outpost_runtime.model_table import ModelTable

LARGE_BYTES = 256 << 10
"""Reading or writing a message of more takes so long that other calls should not wait for it."""

_EXCHANGE_SECONDS = 60.0
_LOOK_SECONDS = 0.05

T = TypeVar("T")


class Crossing:
    """The way from other threads to an event loop: what comes at once wakes it once.

    A wake-up is a system call, and gives the interpreter away; a batch of eight answers would
    make eight of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._awake = False

    def call(self, act: Callable[[], object]) -> None:
        """Do something on the loop soon, in the order of the calls; from any thread.

        Args:
            act: If it fails, the loop's exception handler is told.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._calls.append(act)
        if self._awake:
            return
        self._awake = True
        try:
            self._loop.call_soon_threadsafe(self._act)
        except RuntimeError:
            self._awake = False
            raise

    def _act(self) -> None:
        self._awake = False  # first: what comes from here on is done now or wakes us again
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            if self._calls:  # one has failed, which is the loop's to report
                self._loop.call_soon(self._act)


class Workshop:
    """A few threads for what takes seconds now and then, with a bounded number of places.

    Args:
        name: What is done there, for its threads.
        places: For what is being done and what waits, together.
        retry_after: Seconds after which who finds no place may come again.
    """

    def __init__(self, name: str, *, threads: int, places: int, retry_after: float) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places = threading.Semaphore(places)
        self._retry_after = retry_after

    async def run(self, act: Callable[[], T], deadline: float | None) -> T:
        """Return the result of something that is done on one of the threads.

        Args:
            deadline: Of ``time.monotonic``. What has begun goes on after it, and keeps its place.

        Raises:
            BusyError: Every place is taken.
            DeadlineError: The deadline has passed.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(
                "Too many requests are being prepared already.",
                hint=f"Try again in {self._retry_after:g} s.",
                retry_after=self._retry_after,
            )
        future = self._threads.submit(act)
        future.add_done_callback(lambda _: self._places.release())
        left = None if deadline is None else deadline - time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), left)
        except TimeoutError:
            raise DeadlineError("The deadline passed before the request was prepared.") from None

    def close(self) -> None:
        """Let nothing more begin."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def result_of(future: "Future[T]", crossing: Crossing, deadline: float | None = None) -> T:
    """Return what a future of another thread gets; who stops waiting cancels it.

    Half of what ``asyncio.wrap_future`` takes, which chains two futures both ways.

    Args:
        deadline: Of ``time.monotonic``, which is the loop's clock.

    Raises:
        DeadlineError: It has passed.
    """
    if future.done():
        return future.result()
    done = asyncio.Event()
    future.add_done_callback(lambda _: crossing.call(done.set))
    try:
        async with asyncio.timeout_at(deadline):
            await done.wait()
    except TimeoutError:
        raise DeadlineError("The deadline passed before the model had an answer.") from None
    else:
        return future.result()
    finally:
        future.cancel()


async def end_of(future: "Future[None]") -> None:
    """Wait for something that goes on whether anybody waits or not."""
    await asyncio.shield(asyncio.wrap_future(future))


async def exchanged(models: ModelTable, *names: str, deadline: float | None = None) -> None:
    """Wait while what has one of these names makes room for its successor, a minute at most.

    Where the memory does not suffice for both, callers get a pause and not an error.

    Args:
        deadline: Of ``time.monotonic``, after which nobody waits for the answer.
    """
    until = time.monotonic() + _EXCHANGE_SECONDS
    until = until if deadline is None else min(until, deadline)
    # A model is exchanged by another thread, and rarely: looking is enough.
    while any(map(models.is_between, names)) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def aside_if_large(size: int, act: Callable[[], T]) -> T:
    """Do something that takes time with the size of what it reads or writes, in bytes."""
    return await asyncio.to_thread(act) if size > LARGE_BYTES else act()
