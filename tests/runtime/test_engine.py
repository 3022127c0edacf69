import queue
import threading
import time

import pytest
from outpost_runtime.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    UnavailableError,
)
from outpost_runtime.text.decoder import PREFILL_CHUNK, Decoder
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.request import (
    FailEvent,
    FinishEvent,
    FinishReason,
    Sampling,
    TextRequest,
    TokenEvent,
)

from tests.support import toy

MAX_LENGTH = 1024


def _decode(tokens):
    return "".join(chr(96 + token % 26) for token in tokens)


def _engine(session=None, **changes):
    decoder = Decoder(session or toy.ToySession(), slots=1, max_length=MAX_LENGTH)
    settings = {"decode_text": _decode, "end_tokens": frozenset(), "queue_limit": 4} | changes
    return TextEngine(decoder, **settings)


def _request(prompt=(5, 6, 7), **changes):
    return TextRequest(**{"prompt_ids": tuple(prompt), "sampling": Sampling()} | changes)


def _all(engine, request):
    events = queue.SimpleQueue()
    engine.submit(request, events.put)
    received = [events.get(timeout=20)]
    while isinstance(received[-1], TokenEvent):
        received.append(events.get(timeout=20))
    return received


def _expected(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy.next_token(tokens))
    return tokens[len(prompt) :]


@pytest.fixture
def engine():
    engine = _engine()
    yield engine
    engine.close()


class Gate:
    """A sink that lets the engine make one token at a time."""

    def __init__(self):
        self.events = queue.SimpleQueue()
        self._go = threading.Semaphore(0)

    def __call__(self, event):
        self.events.put(event)
        self._go.acquire(timeout=20)

    def go(self, count=1):
        self._go.release(count)


@pytest.mark.parametrize("length", [1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 3 * PREFILL_CHUNK - 5])
def test_every_token_of_prompt_and_answer_counts(engine, length):
    prompt = [token % 50 + 4 for token in range(length)]
    events = _all(engine, _request(prompt, max_new_tokens=10))
    assert [event.token_id for event in events[:-1]] == _expected(prompt, 10)
    assert (events[-1].prompt_tokens, events[-1].generated_tokens) == (length, 10)


def test_nothing_of_one_answer_is_left_in_the_next(engine):
    first = _all(engine, _request([9] * 40, max_new_tokens=20))
    second = _all(engine, _request([5, 6, 7], max_new_tokens=5))
    assert len(first) == 21
    assert [event.token_id for event in second[:-1]] == _expected([5, 6, 7], 5)


def test_an_end_token_ends_the_answer_and_is_not_part_of_it():
    third = _expected([5, 6, 7], 3)[2]
    engine = _engine(end_tokens=frozenset([third]))
    events = _all(engine, _request())
    engine.close()
    assert events[-1].reason is FinishReason.END_OF_TEXT
    assert third not in [event.token_id for event in events[:-1]]


def test_without_a_limit_the_answer_fills_the_context(engine):
    events = _all(engine, _request([4] * (MAX_LENGTH - 7)))
    assert events[-1].reason is FinishReason.LENGTH
    assert events[-1].generated_tokens == 7


def test_a_stop_string_ends_the_answer_before_it(engine):
    plain = "".join(e.text for e in _all(engine, _request(max_new_tokens=20)))
    events = _all(engine, _request(max_new_tokens=20, stop=(plain[6:9],)))
    shown = "".join(e.text for e in events)
    assert events[-1].reason is FinishReason.STOP_STRING
    assert shown == plain[: plain.index(plain[6:9])]


@pytest.mark.parametrize("prompt", [[], [4] * MAX_LENGTH, [4] * (MAX_LENGTH + 1)])
def test_a_prompt_that_cannot_be_answered_is_refused_at_the_door(engine, prompt):
    with pytest.raises(InvalidInputError, match="prompt"):
        engine.submit(_request(prompt), lambda _: None)


def test_same_seed_same_tokens_and_other_seed_other_tokens(engine):
    sampling = Sampling(temperature=5.0)
    runs = [
        [
            e.token_id
            for e in _all(engine, _request(sampling=sampling, seed=s, max_new_tokens=30))[:-1]
        ]
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_seed_that_the_engine_chose_reproduces_the_answer(engine):
    sampling = Sampling(temperature=5.0)
    first = _all(engine, _request(sampling=sampling, max_new_tokens=20))
    again = _all(engine, _request(sampling=sampling, max_new_tokens=20, seed=first[-1].seed))
    assert [e.token_id for e in first[:-1]] == [e.token_id for e in again[:-1]]


def test_cancelling_stops_the_work_within_one_token():
    session, gate = toy.ToySession(), Gate()
    engine = _engine(session)
    generation = engine.submit(_request(), gate)
    gate.events.get(timeout=20)  # the first token is out, the engine waits in the sink
    engine.cancel(generation)
    gate.go(100)
    _all(engine, _request(max_new_tokens=1))  # the next request has been served
    engine.close()
    assert session.runs == 2
    assert gate.events.empty()


def test_a_request_cancelled_in_the_queue_is_never_run():
    session, gate = toy.ToySession(), Gate()
    engine = _engine(session)
    engine.submit(_request(max_new_tokens=1), gate)
    gate.events.get(timeout=20)
    waiting = engine.submit(_request(max_new_tokens=500), lambda _: pytest.fail("was run"))
    engine.cancel(waiting)
    gate.go(100)
    _all(engine, _request(max_new_tokens=1))
    engine.close()
    assert session.runs == 2


def test_ten_times_too_many_requests_are_refused_not_buffered():
    gate = Gate()
    engine = _engine(queue_limit=4)
    engine.submit(_request(max_new_tokens=1), gate)
    gate.events.get(timeout=20)
    refused = 0
    for _ in range(50):
        try:
            engine.submit(_request(max_new_tokens=1), lambda _: None)
        except BusyError:
            refused += 1
    gate.go(100)
    engine.close()
    assert refused == 46


def test_a_passed_deadline_ends_the_request(engine):
    (event,) = _all(engine, _request(deadline=time.monotonic() - 1))
    assert isinstance(event, FailEvent)
    assert isinstance(event.error, DeadlineError)


def test_a_provider_error_ends_one_answer_and_leaves_the_engine_healthy():
    engine = _engine(toy.ToySession(fail_at_run=3))
    events = _all(engine, _request())
    assert isinstance(events[-1].error, ExecutionError)
    assert isinstance(_all(engine, _request(max_new_tokens=2))[-1], FinishEvent)
    engine.close()


def test_a_fault_of_our_own_ends_one_answer_and_tells_the_client_nothing_of_it(caplog):
    engine = _engine(toy.ToySession(break_at_run=2))
    events = _all(engine, _request())
    assert isinstance(events[-1].error, ExecutionError)
    assert "fault of our own" not in str(events[-1].error)
    assert "a fault of our own" in caplog.text
    assert isinstance(_all(engine, _request(max_new_tokens=2))[-1], FinishEvent)
    engine.close()


def test_closing_fails_what_runs_and_what_waits():
    engine = _engine()
    events = queue.SimpleQueue()
    for _ in range(3):
        engine.submit(_request(max_new_tokens=900), events.put)
    engine.close()
    received = []
    while not events.empty():
        received.append(events.get())
    failures = [event for event in received if isinstance(event, FailEvent)]
    finished = [event for event in received if isinstance(event, FinishEvent)]
    assert len(failures) + len(finished) == 3
    assert all(isinstance(event.error, UnavailableError) for event in failures)
    with pytest.raises(UnavailableError):
        engine.submit(_request(), events.put)


def test_a_sink_that_fails_loses_its_request_and_no_other(caplog):
    engine = _engine()

    def closed(_):
        raise RuntimeError("Event loop is closed")

    engine.submit(_request(), closed)
    assert isinstance(_all(engine, _request(max_new_tokens=2))[-1], FinishEvent)
    assert "sink failed" in caplog.text
    engine.close()
