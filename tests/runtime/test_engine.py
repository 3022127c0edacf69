import queue
import time

import numpy as np
import pytest
from outpost_runtime.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    UnavailableError,
)
from outpost_runtime.priority import Priority
from outpost_runtime.text.pace import LARGEST_CHUNK
from outpost_runtime.text.request import (
    Adapter,
    FailEvent,
    FinishEvent,
    FinishReason,
    Sampling,
)

from tests.support import toy
from tests.support.answers import (
    MAX_LENGTH,
    Gate,
    begin,
    continuation,
    events_of,
    new_engine,
    new_request,
    token_ids,
)


@pytest.fixture
def engine():
    engine = new_engine()
    yield engine
    engine.close()


@pytest.mark.parametrize("length", [1, LARGEST_CHUNK, LARGEST_CHUNK + 1, 3 * LARGEST_CHUNK - 5])
def test_every_token_of_prompt_and_answer_counts(engine, length):
    prompt = [token % 50 + 4 for token in range(length)]
    events = events_of(engine, new_request(prompt, max_new_tokens=10))
    assert [event.token_id for event in events[:-1]] == continuation(prompt, 10)
    assert (events[-1].prompt_tokens, events[-1].generated_tokens) == (length, 10)


def test_warming_up_runs_the_largest_runs_and_changes_no_answer():
    session = toy.ToySession()
    engine = new_engine(session, rows=3, blocks=8)
    engine.warm_up()
    assert session.shapes[0] == (1, LARGEST_CHUNK)
    assert (3, 1) in session.shapes
    events = events_of(engine, new_request([5, 6, 7], max_new_tokens=9))
    assert engine.state().cache_use == 0
    engine.close()
    assert token_ids(events) == continuation([5, 6, 7], 9)


def test_nothing_of_one_answer_is_left_in_the_next(engine):
    first = events_of(engine, new_request([9] * 40, max_new_tokens=20))
    second = events_of(engine, new_request([5, 6, 7], max_new_tokens=5))
    assert len(first) == 21
    assert [event.token_id for event in second[:-1]] == continuation([5, 6, 7], 5)


def test_an_end_token_ends_the_answer_and_is_not_part_of_it():
    third = continuation([5, 6, 7], 3)[2]
    engine = new_engine(end_tokens=frozenset([third]))
    events = events_of(engine, new_request())
    engine.close()
    assert events[-1].reason is FinishReason.END_OF_TEXT
    assert third not in [event.token_id for event in events[:-1]]


def test_without_a_limit_the_answer_fills_the_context(engine):
    events = events_of(engine, new_request([4] * (MAX_LENGTH - 7)))
    assert events[-1].reason is FinishReason.LENGTH
    assert events[-1].generated_tokens == 7


def test_a_stop_string_ends_the_answer_before_it(engine):
    plain = "".join(e.text for e in events_of(engine, new_request(max_new_tokens=20)))
    events = events_of(engine, new_request(max_new_tokens=20, stop=(plain[6:9],)))
    shown = "".join(e.text for e in events)
    assert events[-1].reason is FinishReason.STOP_STRING
    assert shown == plain[: plain.index(plain[6:9])]


@pytest.mark.parametrize("prompt", [[], [4] * MAX_LENGTH, [4] * (MAX_LENGTH + 1)])
def test_a_prompt_that_cannot_be_answered_is_refused_at_the_door(engine, prompt):
    with pytest.raises(InvalidInputError, match="prompt"):
        engine.submit(new_request(prompt), lambda _: None)


def test_same_seed_same_tokens_and_other_seed_other_tokens(engine):
    sampling = Sampling(temperature=5.0)
    runs = [
        [
            e.token_id
            for e in events_of(engine, new_request(sampling=sampling, seed=s, max_new_tokens=30))[
                :-1
            ]
        ]
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_seed_that_the_engine_chose_reproduces_the_answer(engine):
    sampling = Sampling(temperature=5.0)
    first = events_of(engine, new_request(sampling=sampling, max_new_tokens=20))
    again = events_of(
        engine, new_request(sampling=sampling, max_new_tokens=20, seed=first[-1].seed)
    )
    assert [e.token_id for e in first[:-1]] == [e.token_id for e in again[:-1]]


def test_cancelling_stops_the_work_within_one_token():
    session, gate = toy.ToySession(), Gate()
    engine = new_engine(session)
    generation = engine.submit(new_request(), gate)
    gate.events.get(timeout=20)  # the first token is out, the engine waits in the sink
    engine.cancel(generation)
    gate.go(100)
    events_of(engine, new_request(max_new_tokens=1))  # the next request has been served
    engine.close()
    assert session.runs == 2
    assert gate.events.empty()


def test_a_request_cancelled_in_the_queue_is_never_run():
    session, gate = toy.ToySession(), Gate()
    engine = new_engine(session)
    engine.submit(new_request(max_new_tokens=1), gate)
    gate.events.get(timeout=20)
    waiting = engine.submit(new_request(max_new_tokens=500), lambda _: pytest.fail("was run"))
    engine.cancel(waiting)
    gate.go(100)
    events_of(engine, new_request(max_new_tokens=1))
    engine.close()
    assert session.runs == 2


def test_ten_times_too_many_requests_are_refused_not_buffered():
    gate = Gate()
    engine = new_engine(queue_limit=4)
    engine.submit(new_request(max_new_tokens=1), gate)
    gate.events.get(timeout=20)
    refused = 0
    for _ in range(50):
        try:
            engine.submit(new_request(max_new_tokens=1), lambda _: None)
        except BusyError:
            refused += 1
    gate.go(100)
    engine.close()
    assert refused == 46


def test_an_interactive_request_takes_a_place_that_batch_work_waits_in():
    gate = Gate()
    engine = new_engine(queue_limit=2)
    engine.submit(new_request(max_new_tokens=1), gate)
    gate.events.get(timeout=20)
    jobs = [begin(engine, new_request(max_new_tokens=2, priority=Priority.BATCH)) for _ in "ab"]
    asked = begin(engine, new_request(max_new_tokens=3))
    gate.go(100)
    (refused,) = jobs[1]()
    assert isinstance(refused.error, BusyError)
    assert refused.error.retry_after > 0
    assert len(token_ids(asked())) == 3
    assert len(token_ids(jobs[0]())) == 2
    counted = engine.statistics.snapshot()
    engine.close()
    assert (counted.success.count, counted.fail.count, counted.blameless) == (3, 1, 1)


def test_a_passed_deadline_ends_the_request(engine):
    (event,) = events_of(engine, new_request(deadline=time.monotonic() - 1))
    assert isinstance(event, FailEvent)
    assert isinstance(event.error, DeadlineError)


def test_a_provider_error_ends_one_answer_and_leaves_the_engine_healthy():
    engine = new_engine(toy.ToySession(fail_at_run=3))
    events = events_of(engine, new_request())
    assert isinstance(events[-1].error, ExecutionError)
    assert isinstance(events_of(engine, new_request(max_new_tokens=2))[-1], FinishEvent)
    engine.close()


def test_a_fault_of_our_own_ends_one_answer_and_tells_the_client_nothing_of_it(caplog):
    engine = new_engine(toy.ToySession(break_at_run=2))
    events = events_of(engine, new_request())
    assert isinstance(events[-1].error, ExecutionError)
    assert "fault of our own" not in str(events[-1].error)
    assert "a fault of our own" in caplog.text
    assert isinstance(events_of(engine, new_request(max_new_tokens=2))[-1], FinishEvent)
    engine.close()


@pytest.mark.incident("memory that runs out", where="a step of the text engine")
@pytest.mark.parametrize("run", [1, 2])  # the reading of the prompt, a token
def test_a_step_without_memory_ends_one_answer_and_leaves_the_engine_healthy(run):
    engine = new_engine(toy.ToySession(break_at_run=run, fault=MemoryError), rows=2)
    events = events_of(engine, new_request())
    assert isinstance(events[-1].error, ExecutionError)
    assert len(events) == run
    assert token_ids(events_of(engine, new_request(max_new_tokens=4))) == continuation([5, 6, 7], 4)
    engine.close()


def test_closing_fails_what_runs_and_what_waits():
    engine = new_engine()
    events = queue.SimpleQueue()
    for _ in range(3):
        engine.submit(new_request(max_new_tokens=900), events.put)
    engine.close()
    received = []
    while not events.empty():
        received.append(events.get())
    failures = [event for event in received if isinstance(event, FailEvent)]
    finished = [event for event in received if isinstance(event, FinishEvent)]
    assert len(failures) + len(finished) == 3
    assert all(isinstance(event.error, UnavailableError) for event in failures)
    with pytest.raises(UnavailableError):
        engine.submit(new_request(), events.put)


def test_a_sink_that_fails_loses_its_request_and_no_other(caplog):
    engine = new_engine()

    def closed(_):
        raise RuntimeError("Event loop is closed")

    engine.submit(new_request(), closed)
    assert isinstance(events_of(engine, new_request(max_new_tokens=2))[-1], FinishEvent)
    assert "sink failed" in caplog.text
    engine.close()


class Form:
    """A constraint: three tokens, and then nothing but the base's end."""

    def __init__(self, end):
        self.end = end
        self.left = 3

    def apply(self, logits):
        if self.left:
            return logits
        masked = np.full_like(logits, -np.inf)
        masked[self.end] = 0
        return masked

    is_shortened = False

    def afford(self, token, _room):
        return token

    def advance(self, token):
        self.left -= token != self.end

    def accepts(self, _tokens):
        return 0


def test_an_adapter_with_an_end_of_its_own_ends_where_the_form_does():
    base_end, own_end = 1, 2
    engine = new_engine(end_tokens=frozenset([base_end]))
    adapter = Adapter(name="a", index=None, digest="d", end_tokens=frozenset([own_end]))
    request = new_request(adapter=adapter, constraint=Form(base_end), max_new_tokens=20)
    events = events_of(engine, request)
    engine.close()
    assert events[-1].reason is FinishReason.END_OF_TEXT
    assert token_ids(events) == continuation([5, 6, 7], 3)
