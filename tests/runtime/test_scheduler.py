import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_runtime.errors import BusyError
from outpost_runtime.priority import Priority
from outpost_runtime.text.request import Sampling, TextRequest
from outpost_runtime.text.scheduler import Scheduler, Sequence


def _sequence(length=4, *, since=0.0, priority=Priority.INTERACTIVE, deadline=None):
    request = TextRequest(
        prompt_ids=tuple(range(1, length + 1)),
        sampling=Sampling(),
        priority=priority,
        deadline=deadline,
    )
    return Sequence(request=request, since=since)


def _batch(length=4, *, since=0.0):
    return _sequence(length, since=since, priority=Priority.BATCH)


def _turn(scheduler, now=0.0, chunk=100):
    """Plan and do what the engine would do; every sequence that can makes a token."""
    step = scheduler.plan(now)
    for sequence in step.decode:
        sequence.stored += 1
        sequence.token_ids.append(9)
    if step.read:
        step.read.stored += min(chunk, step.read.unread)
        if step.read.unread == 0:
            step.read.token_ids.append(9)
    return step


def test_requests_join_and_leave_at_token_boundaries():
    scheduler = Scheduler(rows=2, queue_limit=9)
    first, second, third = (_sequence(since=n) for n in range(3))
    for sequence in (first, second, third):
        scheduler.submit(sequence)
    assert _turn(scheduler).read is first
    step = _turn(scheduler)
    assert (step.decode, step.read) == ((first,), second)
    step = _turn(scheduler)
    assert (step.decode, step.read) == ((first, second), None)
    scheduler.remove(first)
    step = _turn(scheduler)
    assert (step.decode, step.read) == ((second,), third)
    assert [(move.source, move.target) for move in step.moves] == [(1, 0)]


def test_a_long_prompt_is_read_in_pieces_beside_the_others_tokens():
    scheduler = Scheduler(rows=2, queue_limit=9)
    short, long = _sequence(2), _sequence(1000, since=1)
    scheduler.submit(short)
    _turn(scheduler)
    scheduler.submit(long)
    steps = [_turn(scheduler, chunk=100) for _ in range(10)]
    assert all(step.decode == (short,) and step.read is long for step in steps)
    assert _turn(scheduler).decode == (short, long)
    assert short.generated == 12


def test_interactive_goes_before_batch_and_both_go_by_age():
    scheduler = Scheduler(rows=1, queue_limit=9)
    waiting = [_batch(since=0), _batch(since=1), _sequence(since=2), _sequence(since=3)]
    for sequence in reversed(waiting):
        scheduler.submit(sequence)
    served = []
    for _ in waiting:
        served.append(_turn(scheduler).read)
        scheduler.remove(served[-1])
    assert served == [waiting[2], waiting[3], waiting[0], waiting[1]]


def test_a_batch_request_that_has_waited_long_counts_as_interactive():
    scheduler = Scheduler(rows=1, queue_limit=9, patience=30)
    old, new = _batch(since=0), _sequence(since=1)
    scheduler.submit(new)
    scheduler.submit(old)
    assert _turn(scheduler, now=31).read is old


def test_the_driver_does_not_wait_for_the_batch_job():
    scheduler = Scheduler(rows=2, queue_limit=9)
    jobs = [_batch(since=n) for n in range(2)]
    for job in jobs:
        scheduler.submit(job)
    while len(_turn(scheduler).decode) < 2:
        pass
    driver = _sequence(since=5)
    scheduler.submit(driver)
    step = _turn(scheduler)
    assert step.read is driver
    assert step.decode == (jobs[0],)  # the youngest gave up its row
    assert jobs[1].row is None
    assert jobs[1].stored == 0
    scheduler.remove(driver)
    assert _turn(scheduler).read is jobs[1]


def test_the_reading_of_a_batch_prompt_is_interrupted():
    scheduler = Scheduler(rows=2, queue_limit=9)
    job, driver = _batch(1000), _sequence(since=5)
    scheduler.submit(job)
    _turn(scheduler)
    scheduler.submit(driver)
    assert _turn(scheduler).read is driver
    step = _turn(scheduler)
    assert (step.decode, step.read) == ((driver,), job)


def test_aged_batch_work_is_not_interrupted_again():
    scheduler = Scheduler(rows=1, queue_limit=9, patience=30)
    job = _batch(1000, since=0)
    scheduler.submit(job)
    _turn(scheduler, now=31)
    scheduler.submit(_sequence(since=32))
    assert _turn(scheduler, now=33).read is job


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = Scheduler(rows=3, queue_limit=9, patience=30)
    long, short = _sequence(3000, since=0), _sequence(20, since=1)
    scheduler.submit(long)
    _turn(scheduler, now=1, chunk=256)
    scheduler.submit(short)
    assert _turn(scheduler, now=2).read is short
    assert _turn(scheduler, now=3, chunk=256).read is long  # from its beginning, or the cache
    assert short.generated == 2


def test_a_prompt_of_like_length_waits_its_turn():
    scheduler = Scheduler(rows=3, queue_limit=9)
    first, second = _sequence(900, since=0), _sequence(600, since=1)
    scheduler.submit(first)
    _turn(scheduler, chunk=100)
    scheduler.submit(second)
    assert _turn(scheduler, chunk=100).read is first


def test_a_long_prompt_that_has_waited_long_is_read_to_its_end():
    scheduler = Scheduler(rows=2, queue_limit=9, patience=30)
    long = _sequence(3000, since=0)
    scheduler.submit(long)
    _turn(scheduler, now=31, chunk=256)
    scheduler.submit(_sequence(20, since=31))
    assert _turn(scheduler, now=32, chunk=256).read is long


def test_ten_times_too_many_are_refused():
    scheduler = Scheduler(rows=1, queue_limit=3)
    for _ in range(3):
        scheduler.submit(_sequence())
    for _ in range(30):
        with pytest.raises(BusyError):
            scheduler.submit(_sequence())
    assert scheduler.waiting == 3


def test_a_queue_full_of_batch_work_takes_the_interactive_and_gives_up_its_youngest():
    scheduler = Scheduler(rows=1, queue_limit=3)
    jobs = [_batch(since=n) for n in (0, 2, 1)]
    assert [scheduler.submit(job) for job in jobs] == [None] * 3
    with pytest.raises(BusyError):
        scheduler.submit(_batch(since=3))
    assert scheduler.submit(_sequence(since=4)) is jobs[1]
    assert scheduler.submit(_sequence(since=5)) is jobs[2]
    assert scheduler.submit(_sequence(since=6)) is jobs[0]
    with pytest.raises(BusyError):
        scheduler.submit(_sequence(since=7))
    assert scheduler.waiting == 3


def test_an_answer_that_has_begun_keeps_its_place():
    scheduler = Scheduler(rows=1, queue_limit=1)
    job = _batch(since=0)
    scheduler.submit(job)
    _turn(scheduler)
    scheduler.submit(_sequence(since=1))
    _turn(scheduler)  # sends the batch request back
    assert (job.generated, scheduler.waiting) == (1, 1)
    with pytest.raises(BusyError):
        scheduler.submit(_sequence(since=2))


def test_whom_nobody_waits_for_any_more_makes_room_for_anybody():
    scheduler = Scheduler(rows=1, queue_limit=2)
    live, late = _sequence(since=0), _sequence(since=1, deadline=2)
    scheduler.submit(live)
    scheduler.submit(late)
    with pytest.raises(BusyError):
        scheduler.submit(_batch(since=2))
    assert scheduler.submit(_batch(since=3)) is late


class _Rows:
    """What the rows hold, if one does nothing but what the plans say."""

    def __init__(self, rows):
        self.texts = [[] for _ in range(rows)]

    def follow(self, step, rng):
        for move in step.moves:
            self.texts[move.target][: move.tokens] = self.texts[move.source][: move.tokens]
        assert [s.row for s in step.decode] == list(range(len(step.decode)))
        for sequence in step.decode:
            self._append(sequence, 1, rng)
        if step.read:
            assert step.read.row not in range(len(step.decode))
            self._append(step.read, rng.randint(1, step.read.unread), rng)

    def _append(self, sequence, count, rng):
        text = self.texts[sequence.row]
        assert text[: sequence.stored] == sequence.token_ids[: sequence.stored]
        text[sequence.stored :] = sequence.token_ids[sequence.stored :][:count]
        sequence.stored += count
        if sequence.unread == 0:
            sequence.token_ids.append(rng.randint(1, 1000))


@settings(max_examples=150, deadline=None)
@given(rows=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_whatever_comes_and_goes_every_row_holds_its_own_text(rows, seed):
    rng = random.Random(seed)  # noqa: S311 - for a test
    scheduler, memory, known = Scheduler(rows=rows, queue_limit=8), _Rows(rows), []
    for now in range(60):
        if rng.random() < 0.4 and scheduler.waiting < 8:
            kind = rng.choice([_sequence, _batch])
            known.append(kind(rng.randint(1, 12), since=now))
            scheduler.submit(known[-1])
        if known and rng.random() < 0.3:
            scheduler.remove(known.pop(rng.randrange(len(known))))
        step = scheduler.plan(now)
        assert set(step.decode) | {step.read} <= {*known, None}
        assert len(step.decode) + (step.read is not None) <= rows
        memory.follow(step, rng)
        assert scheduler.idle == (not known)
