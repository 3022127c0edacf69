"""Which requests share a run: decided without a clock, a thread or a tensor."""

import pytest
from outpost_runtime.errors import BusyError
from outpost_runtime.priority import Priority
from outpost_runtime.tensor.batcher import PATIENCE_SECONDS, Batcher, BatchRules, Run
from outpost_runtime.tensor.request import Job, SequenceStep


def _job(rows=1, *, since=0.0, length=0, key=(), batch=False, sequence=None):
    return Job(
        feeds={},
        key=key,
        rows=rows,
        length=length,
        since=since,
        priority=Priority.BATCH if batch else Priority.INTERACTIVE,
        sequence=sequence,
    )


def _batcher(jobs, *, max_batch=4, queue_limit=64, **rules):
    batcher = Batcher(BatchRules(max_batch=max_batch, **rules), queue_limit=queue_limit)
    for job in jobs:
        batcher.submit(job)
    return batcher


def _planned(jobs, now=1.0, **rules):
    run = _batcher(jobs, **rules).plan(now)
    assert isinstance(run, Run)
    return list(run.jobs)


def test_requests_that_wait_share_a_run_as_far_as_they_fit():
    jobs = [_job(2), _job(3), _job(1), _job(1)]
    assert _planned(jobs) == [jobs[0], jobs[2], jobs[3]]


def test_without_a_batch_dimension_every_request_runs_alone():
    jobs = [_job(), _job()]
    assert _planned(jobs, max_batch=0) == jobs[:1]


def test_other_shapes_do_not_share_a_run():
    jobs = [_job(key=(7,)), _job(key=(8,)), _job(key=(7,))]
    assert _planned(jobs) == [jobs[0], jobs[2]]


def test_the_interactive_go_first_and_take_batch_work_along():
    batch, interactive = _job(since=0.0, batch=True), _job(since=0.5)
    assert _planned([batch, interactive]) == [interactive, batch]


def test_batch_work_does_not_take_the_interactive_along_when_it_is_not_their_turn():
    batch = [_job(batch=True), _job(batch=True)]
    run = _batcher(batch).plan(1.0)
    assert run.priority is Priority.BATCH
    assert list(run.jobs) == batch


def test_batch_work_that_has_waited_long_counts_as_interactive():
    batch = _job(since=0.0, batch=True, key=(1,))
    interactive = _job(since=1.0, key=(2,))
    assert _planned([batch, interactive], now=PATIENCE_SECONDS - 1) == [interactive]
    assert _planned([batch, interactive], now=PATIENCE_SECONDS + 1) == [batch]


def test_texts_share_a_run_while_little_of_it_is_filling():
    jobs = [_job(length=64), _job(length=60), _job(length=8), _job(length=50)]
    assert _planned(jobs) == [jobs[0], jobs[1], jobs[3]]


def test_a_request_waits_for_others_only_as_long_as_it_may():
    batcher = _batcher([_job(since=1.0)], delay=0.5)
    assert batcher.plan(1.2) == pytest.approx(0.3)
    assert isinstance(batcher.plan(1.5), Run)


def test_a_full_run_does_not_wait():
    assert len(_planned([_job(2, since=1.0), _job(2, since=1.0)], delay=0.5)) == 2


def test_a_run_of_a_preferred_size_does_not_wait_and_a_larger_one_is_cut_to_it():
    assert len(_planned([_job(since=1.0) for _ in range(2)], delay=0.5, preferred=(2,))) == 2
    assert len(_planned([_job(since=0.0) for _ in range(3)], delay=0.5, preferred=(2,))) == 2


def test_beyond_its_limit_the_queue_refuses():
    batcher = _batcher([_job(), _job()], queue_limit=2)
    with pytest.raises(BusyError):
        batcher.submit(_job())


def test_of_a_sequence_one_request_runs_at_a_time_and_in_order():
    first, second = _job(sequence=SequenceStep(id=7)), _job(sequence=SequenceStep(id=7))
    other = _job(sequence=SequenceStep(id=8))
    batcher = _batcher([first, second, other], max_batch=0)
    run = batcher.plan(1.0)
    batcher.begin(run)
    assert run.jobs == (first,)
    beside = batcher.plan(1.0)
    assert beside.jobs == (other,)
    batcher.begin(beside)
    assert batcher.plan(1.0) is None
    batcher.end(run)
    assert batcher.plan(1.0).jobs == (second,)
