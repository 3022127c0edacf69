import pytest
from outpost_runtime.errors import BusyError
from outpost_runtime.text.request import Sampling, TextRequest
from outpost_runtime.text.scheduler import Decode, Prefill, Scheduler, Sequence


def _sequence(length=3):
    return Sequence(request=TextRequest(prompt_ids=(1,) * length, sampling=Sampling()))


def test_a_long_prompt_is_read_in_chunks_and_only_the_last_one_answers():
    scheduler, sequence = Scheduler(queue_limit=1, chunk=4), _sequence(10)
    scheduler.submit(sequence)
    steps = []
    while isinstance(step := scheduler.plan(), Prefill):
        steps.append((step.count, step.last))
        sequence.stored += step.count
    assert steps == [(4, False), (4, False), (2, True)]
    assert step == Decode(sequence=sequence, slot=0)


def test_requests_are_served_in_the_order_in_which_they_came():
    scheduler = Scheduler(queue_limit=3, chunk=4)
    sequences = [_sequence() for _ in range(3)]
    for sequence in sequences:
        scheduler.submit(sequence)
    served = []
    while (step := scheduler.plan()) is not None:
        served.append(step.sequence)
        scheduler.remove(step.sequence)
    assert served == sequences
    assert scheduler.idle


def test_a_full_queue_refuses_with_a_hint():
    scheduler = Scheduler(queue_limit=1, chunk=4)
    scheduler.submit(_sequence())
    with pytest.raises(BusyError, match="Try again"):
        scheduler.submit(_sequence())


def test_removing_what_is_gone_already_is_no_error():
    scheduler, sequence = Scheduler(queue_limit=1, chunk=4), _sequence()
    scheduler.submit(sequence)
    scheduler.remove(sequence)
    scheduler.remove(sequence)
    assert scheduler.plan() is None
