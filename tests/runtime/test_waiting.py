"""How other threads reach the event loop."""

import asyncio
import threading
import time
from concurrent.futures import Future

import pytest
from outpost_runtime.errors import BusyError, DeadlineError
from outpost_runtime.server.waiting import Crossing, Workshop, exchanged, result_of


class _CountingLoop:
    """An event loop that counts how often it is woken."""

    def __init__(self, loop):
        self._loop = loop
        self.woken = 0

    def call_soon_threadsafe(self, act):
        self.woken += 1
        return self._loop.call_soon_threadsafe(act)


def test_what_comes_at_once_wakes_the_loop_once_and_keeps_its_order():
    async def main():
        loop = _CountingLoop(asyncio.get_running_loop())
        crossing, seen = Crossing(loop), []
        for _ in range(3):
            for number in range(8):
                crossing.call(lambda number=number: seen.append(number))
            await asyncio.sleep(0.01)
        return loop.woken, seen

    woken, seen = asyncio.run(main())
    assert woken == 3
    assert seen == list(range(8)) * 3


def test_nothing_is_lost_between_threads_that_never_rest():
    async def main():
        crossing, seen = Crossing(asyncio.get_running_loop()), []

        def work(name):
            for number in range(2000):
                crossing.call(lambda number=number: seen.append((name, number)))

        await asyncio.gather(*(asyncio.to_thread(work, name) for name in range(3)))
        await asyncio.sleep(0.01)
        return seen

    seen = asyncio.run(main())
    for name in range(3):
        assert [number for who, number in seen if who == name] == list(range(2000))


def test_an_act_that_fails_keeps_nothing_from_those_behind_it():
    async def main():
        crossing, seen = Crossing(asyncio.get_running_loop()), []
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        crossing.call(lambda: 1 / 0)
        crossing.call(lambda: seen.append(1))
        await asyncio.sleep(0.01)
        return seen

    assert asyncio.run(main()) == [1]


def test_a_loop_that_has_ended_is_an_error_every_time():
    async def main():
        return Crossing(asyncio.get_running_loop())

    crossing = asyncio.run(main())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            crossing.call(lambda: None)


def test_whoever_stops_waiting_for_a_future_cancels_it():
    async def main():
        future = Future()
        waiting = asyncio.create_task(result_of(future, Crossing(asyncio.get_running_loop())))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return future.cancelled()

    assert asyncio.run(main())


def test_a_deadline_ends_the_waiting_and_cancels_what_was_waited_for():
    async def main():
        future, crossing = Future(), Crossing(asyncio.get_running_loop())
        with pytest.raises(DeadlineError):
            await result_of(future, crossing, time.monotonic() + 0.05)
        in_time = Future()
        threading.Timer(0.05, in_time.set_result, [7]).start()
        assert await result_of(in_time, crossing, time.monotonic() + 20) == 7
        return future.cancelled()

    assert asyncio.run(main())


def test_a_workshop_refuses_what_finds_no_place_and_keeps_deadlines():
    go = threading.Event()

    def slow():
        assert go.wait(20)
        return 1

    async def main():
        workshop = Workshop("slow", threads=1, places=2, retry_after=3.0)
        first = asyncio.create_task(workshop.run(slow, None))
        await asyncio.sleep(0.05)
        with pytest.raises(DeadlineError):  # it has not begun: its place is free again
            await workshop.run(slow, time.monotonic() + 0.05)
        second = asyncio.create_task(workshop.run(slow, time.monotonic() + 20))
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as caught:
            await workshop.run(slow, None)
        assert caught.value.retry_after == 3.0
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(BusyError):  # it goes on, though nobody waits for it
            await workshop.run(slow, None)
        go.set()
        assert await second == 1
        assert await workshop.run(slow, None) == 1
        workshop.close()

    asyncio.run(main())


class _Between:
    """A model that has made room for its successor, for some looks."""

    def __init__(self, looks):
        self.looks = looks

    def is_between(self, name):
        self.looks -= name == "press"
        return name == "press" and self.looks >= 0


def test_callers_wait_for_a_successor_and_not_beyond_their_deadline():
    soon, late = _Between(2), _Between(10**9)
    asyncio.run(asyncio.wait_for(exchanged(soon, "press", "other"), 20))
    assert soon.looks == -1
    began = time.monotonic()
    asyncio.run(asyncio.wait_for(exchanged(late, "press", deadline=began + 0.2), 20))
    assert 0.2 <= time.monotonic() - began < 10
    asyncio.run(asyncio.wait_for(exchanged(late, "other"), 20))
