"""Fetchers around fetchers: trying again, going elsewhere, slower, counted."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.errors import ConfigurationError, FetchError, NotFoundError
from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.counting import CountingFetcher, Traffic
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.fetch.retry import Backoff, RetryingFetcher
from outpost_runtime.update.fetch.throttle import Bandwidth, ThrottledFetcher

from tests.support.sources import MemoryFetcher, noise

BLOCK = "blocks/ab/block"
TIMESTAMP = "metadata/timestamp.json"
DATA = noise(5000)
LIMIT = 1 << 20
NEVER = float("inf")


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def _retrying(source, time, **backoff):
    return RetryingFetcher(
        source, Backoff(**backoff), sleep=time.sleep, clock=time.clock, chance=lambda: 1.0
    )


# -- retry --------------------------------------------------------------------------------------


def test_a_retry_goes_on_at_the_byte_that_was_reached():
    source = MemoryFetcher(files={BLOCK: DATA}, cuts=[1500, 0, 2001])
    fetcher = _retrying(source, Time())
    assert b"".join(fetcher.read(BLOCK, start=7, limit=LIMIT)) == DATA[7:]
    assert source.reads == [(BLOCK, 7), (BLOCK, 1507), (BLOCK, 1507), (BLOCK, 3508)]
    assert source.given == len(DATA) - 7


def test_a_source_that_keeps_failing_is_given_up_after_bounded_waits():
    source, time = MemoryFetcher(files={BLOCK: DATA}, cuts=[0] * 99), Time()
    with pytest.raises(FetchError, match="The source failed"):
        read_whole(_retrying(source, time, attempts=6), BLOCK, limit=LIMIT)
    assert len(source.reads) == 6
    assert time.slept == [0.5, 1, 2, 4, 8]


def test_a_source_that_gives_a_byte_a_time_is_given_up():
    source, time = MemoryFetcher(files={BLOCK: noise(200_000)}, cuts=[1] * 999), Time()
    with pytest.raises(FetchError):
        read_whole(_retrying(source, time), BLOCK, limit=LIMIT)
    assert len(source.reads) == 6


def test_a_source_that_gets_on_between_failures_may_fail_often():
    data = noise(1 << 20)
    source = MemoryFetcher(files={BLOCK: data}, cuts=[70_000] * 14, piece=1 << 16)
    assert read_whole(_retrying(source, Time()), BLOCK, limit=LIMIT) == data
    assert len(source.reads) == 15
    assert source.given == len(data)


def test_what_a_server_asks_for_is_waited_and_what_is_too_long_is_not():
    time = Time()
    busy = FetchError("busy", retry_after=10.0)
    source = MemoryFetcher(files={BLOCK: DATA}, cuts=[0], error=busy)
    assert read_whole(_retrying(source, time), BLOCK, limit=LIMIT) == DATA
    assert time.slept == [12.5]
    for seconds in (61.0, NEVER):
        error = FetchError("busy", retry_after=seconds)
        source = MemoryFetcher(files={BLOCK: DATA}, cuts=[0], error=error)
        with pytest.raises(FetchError, match="busy"):
            read_whole(_retrying(source, time), BLOCK, limit=LIMIT)
        assert len(source.reads) == 1


def test_a_file_that_is_not_there_is_not_asked_for_again():
    source = MemoryFetcher(files={})
    with pytest.raises(NotFoundError):
        read_whole(_retrying(source, Time()), BLOCK, limit=LIMIT)
    assert len(source.reads) == 1


def test_time_ends_what_attempts_do_not():
    data = noise(1 << 20)
    source = MemoryFetcher(files={BLOCK: data}, cuts=[70_000] * 14, piece=1 << 16)
    with pytest.raises(FetchError):
        read_whole(_retrying(source, Time(), total_seconds=2.9), BLOCK, limit=LIMIT)
    assert len(source.reads) == 7


def test_an_event_ends_the_waiting():
    stop = threading.Event()
    stop.set()
    source = MemoryFetcher(files={BLOCK: DATA}, cuts=[0, 0])
    with pytest.raises(FetchError):
        read_whole(RetryingFetcher(source, sleep=stop.wait), BLOCK, limit=LIMIT)
    assert len(source.reads) == 1


def test_a_file_that_may_be_replaced_is_read_again_from_its_beginning():
    source = MemoryFetcher(files={TIMESTAMP: DATA}, cuts=[1500, 4000])
    assert read_whole(_retrying(source, Time()), TIMESTAMP, limit=LIMIT) == DATA
    assert source.reads == [(TIMESTAMP, 0)] * 3


def test_a_source_that_gives_too_much_is_not_asked_again():
    class Endless(MemoryFetcher):
        def read(self, path, *, start=0, **_):
            self.reads.append((path, start))
            while True:
                yield bytes(1000)

    for path in (BLOCK, TIMESTAMP):
        source = Endless(files={})
        with pytest.raises(FetchError, match="larger than 5,000"):
            read_whole(_retrying(source, Time()), path, limit=5000)
        assert len(source.reads) == 1


@given(
    failures=st.integers(1, 100),
    retry_after=st.none() | st.floats(0, 1e9) | st.just(NEVER),
    chance=st.floats(0, 1),
)
def test_a_wait_is_bounded_and_never_shorter_than_asked_for(failures, retry_after, chance):
    backoff = Backoff()
    wait = backoff.wait(failures, retry_after, chance)
    if wait is None:
        assert failures >= backoff.attempts or retry_after > backoff.longest_seconds
    else:
        assert min(retry_after or 0, backoff.longest_seconds) <= wait <= backoff.longest_seconds


# -- throttle -----------------------------------------------------------------------------------


def test_a_capped_read_takes_its_time():
    time = Time()
    bandwidth = Bandwidth(2000, clock=time.clock, sleep=time.sleep)
    fetcher = ThrottledFetcher(MemoryFetcher(files={BLOCK: DATA}, piece=700), bandwidth)
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    assert time.now == pytest.approx(1002.5)


def test_two_readers_share_a_cap():
    time = Time()
    bandwidth = Bandwidth(2000, clock=time.clock, sleep=time.sleep)
    readers = [
        ThrottledFetcher(MemoryFetcher(files={BLOCK: DATA}), bandwidth).read(BLOCK, limit=LIMIT)
        for _ in range(2)
    ]
    pairs = list(zip(*readers, strict=True))
    assert b"".join(one for one, _ in pairs) == DATA
    assert time.now == pytest.approx(1005.0)


def test_unused_time_is_not_saved_up():
    time = Time()
    bandwidth = Bandwidth(2000, clock=time.clock, sleep=time.sleep)
    time.now += 3600
    bandwidth.take(4000)
    assert time.slept == [2.0]


def test_a_cap_that_is_too_low_is_refused():
    with pytest.raises(ConfigurationError, match="too low"):
        Bandwidth(1023)


# -- counting -----------------------------------------------------------------------------------


def test_requests_and_bytes_are_counted_and_shown():
    traffic, shown = Traffic(), []
    source = MemoryFetcher(files={BLOCK: DATA}, cuts=[1500])
    counting = CountingFetcher(source, traffic, shown.append)
    assert read_whole(_retrying(counting, Time()), BLOCK, limit=LIMIT) == DATA
    assert (traffic.requests, traffic.bytes) == (2, len(DATA))
    assert sum(shown) == len(DATA)
    with pytest.raises(NotFoundError):
        read_whole(counting, TIMESTAMP, limit=LIMIT)
    assert (traffic.requests, traffic.bytes) == (3, len(DATA))


# -- failover -----------------------------------------------------------------------------------


def _pair(mirror_cuts=(), error=None, **mirror_files):
    files = mirror_files.get("files", {BLOCK: DATA, TIMESTAMP: DATA})
    error = error or FetchError("The mirror failed.")
    mirror = MemoryFetcher(files=files, name="mirror", cuts=list(mirror_cuts), error=error)
    return mirror, MemoryFetcher(files={BLOCK: DATA, TIMESTAMP: DATA}, name="repository")


@pytest.mark.parametrize("cut", range(0, 5001, 250))
def test_the_next_source_goes_on_where_the_first_one_failed(cut):
    mirror, repository = _pair([cut])
    fetcher = FailoverFetcher([mirror, repository])
    assert fetcher.label == "mirror"
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    assert repository.reads == [(BLOCK, cut)]
    assert fetcher.label == "repository"


def test_a_source_that_failed_is_not_asked_again_in_this_run():
    mirror, repository = _pair([10])
    fetcher = FailoverFetcher([mirror, repository])
    for _ in range(3):
        assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    assert len(mirror.reads) == 1


def test_pieces_of_a_file_that_may_be_replaced_never_come_from_two_sources():
    mirror, repository = _pair([4000])
    mirror.files = {TIMESTAMP: bytes(5000)}
    fetcher = FailoverFetcher([mirror, repository])
    assert read_whole(fetcher, TIMESTAMP, limit=LIMIT) == DATA
    assert repository.reads == [(TIMESTAMP, 0)]


def test_a_mirror_without_a_block_is_kept_and_the_repository_is_asked():
    mirror, repository = _pair(files={})
    fetcher = FailoverFetcher([mirror, repository])
    for _ in range(2):
        assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    assert len(mirror.reads) == len(repository.reads) == 2


def test_metadata_that_the_first_source_does_not_have_is_asked_of_it_alone():
    mirror, repository = _pair(files={})
    with pytest.raises(NotFoundError):
        read_whole(FailoverFetcher([mirror, repository]), TIMESTAMP, limit=LIMIT)
    assert repository.reads == []


def test_a_source_that_lies_is_put_aside_and_none_is_left_after_the_last():
    mirror, repository = _pair()
    fetcher = FailoverFetcher([mirror, repository])
    read_whole(fetcher, BLOCK, limit=LIMIT)
    assert fetcher.blame() is True
    read_whole(fetcher, BLOCK, limit=LIMIT)
    assert (len(mirror.reads), len(repository.reads)) == (1, 1)
    assert fetcher.blame() is False
    with pytest.raises(FetchError, match="Every source has failed"):
        read_whole(fetcher, BLOCK, limit=LIMIT)


def test_the_last_failure_is_told_when_all_fail():
    mirror, repository = _pair([10])
    repository.cuts = [0]
    with pytest.raises(FetchError, match="The source failed"):
        read_whole(FailoverFetcher([mirror, repository]), BLOCK, limit=LIMIT)


@given(
    cuts=st.lists(st.lists(st.integers(0, 3000), max_size=4), min_size=1, max_size=4),
    start=st.integers(0, 5000),
)
def test_whatever_fails_when_the_bytes_are_right_or_an_error_comes(cuts, start):
    sources = [MemoryFetcher(files={BLOCK: DATA}, cuts=list(c), piece=333) for c in cuts]
    time = Time()
    fetcher = FailoverFetcher([_retrying(s, time, attempts=3) for s in sources])
    came = b""
    try:
        for piece in fetcher.read(BLOCK, start=start, limit=LIMIT):
            came += piece
    except FetchError:
        assert all(len(c) >= 3 for c in cuts)
    else:
        assert len(came) == len(DATA) - start
    assert DATA[start:].startswith(came)
    assert sum(s.given for s in sources) == len(came)
