"""Many requests in one engine: what they share, and what they must not."""

import time
from itertools import pairwise

import numpy as np
import pytest
from outpost_runtime.errors import BusyError, DeadlineError, ExecutionError
from outpost_runtime.priority import LONGEST_HOLD, Precedence, Priority
from outpost_runtime.text.memory import BLOCK_TOKENS
from outpost_runtime.text.pace import LARGEST_CHUNK
from outpost_runtime.text.request import FailEvent, FinishEvent, Sampling, TokenEvent

from tests.support import toy
from tests.support.answers import (
    Gate,
    begin,
    continuation,
    events_of,
    new_engine,
    new_request,
    token_ids,
)

PROMPTS = [[5 + n, 6, 7 * n % 50 + 4] * (1 + 3 * n) for n in range(8)]


@pytest.fixture
def session():
    return toy.ToySession()


@pytest.fixture
def engine(session):
    engine = new_engine(session, rows=4, blocks=64, queue_limit=16)
    yield engine
    engine.close()


def _held(engine, max_new_tokens=2):
    """Hold the engine inside of one request's first token until the returned gate opens."""
    gate = Gate()
    engine.submit(new_request([9, 9], max_new_tokens=max_new_tokens), gate)
    gate.events.get(timeout=20)
    return gate


def test_twice_as_many_streams_as_rows_all_get_their_own_tokens(engine, session):
    gate = _held(engine)
    waits = [begin(engine, new_request(p, max_new_tokens=10 + n)) for n, p in enumerate(PROMPTS)]
    gate.go(100)
    for number, (prompt, wait) in enumerate(zip(PROMPTS, waits, strict=True)):
        assert token_ids(wait()) == continuation(prompt, 10 + number)
    assert (4, 1) in session.shapes


def test_the_batch_makes_one_token_per_stream_and_run(engine, session):
    gate = _held(engine)
    waits = [begin(engine, new_request(p, max_new_tokens=30)) for p in PROMPTS[:3]]
    gate.go(100)
    events = [wait() for wait in waits]
    assert max(e[-1].mean_batch_size for e in events) > 2
    assert session.runs < 30 * 3


def test_a_seeded_answer_is_the_same_whatever_else_is_in_the_batch(engine):
    request = new_request(sampling=Sampling(temperature=5.0), seed=7, max_new_tokens=40)
    alone = token_ids(events_of(engine, request))
    gate = _held(engine)
    others = [
        begin(engine, new_request(p, sampling=Sampling(temperature=5.0), max_new_tokens=25))
        for p in PROMPTS[:5]
    ]
    crowded = begin(engine, request)
    gate.go(100)
    assert token_ids(crowded()) == alone
    for wait in others:
        wait()


def test_tokens_flow_while_a_long_prompt_is_read(engine, session):
    running = begin(engine, new_request(max_new_tokens=60))
    long = [n % 50 + 4 for n in range(900)]
    assert token_ids(events_of(engine, new_request(long, max_new_tokens=3))) == continuation(
        long, 3
    )
    assert token_ids(running()) == continuation([5, 6, 7], 60)
    pieces = [count for rows, count in session.shapes if rows == 1 and count > 3]
    assert all(count <= LARGEST_CHUNK + 1 for count in pieces)
    assert len(pieces) > 900 // LARGEST_CHUNK


def test_a_vanished_clients_row_is_free_within_one_step(engine, session):
    gate = _held(engine, max_new_tokens=20)
    live = [engine.submit(new_request(max_new_tokens=900), lambda _: None) for _ in range(3)]
    gate.go(6)
    for _ in range(6):
        gate.events.get(timeout=20)  # by then the three have been read, and decode
    assert (engine.state().live, session.shapes[-1]) == (4, (4, 1))
    engine.cancel(live[1])
    late = begin(engine, new_request([8, 9], max_new_tokens=5))
    shapes = len(session.shapes)
    gate.go(1000)
    assert token_ids(late()) == continuation([8, 9], 5)
    # The batch in which the engine was held, then three rows beside the newcomer's prompt.
    assert session.shapes[shapes : shapes + 2] == [(3, 1), (1, 2)]


def test_a_deadline_passes_in_the_queue(session):
    engine = new_engine(session, rows=1)
    gate = _held(engine)
    wait = begin(engine, new_request(deadline=time.monotonic() + 0.01))
    time.sleep(0.02)
    gate.go(100)
    (event,) = wait()
    engine.close()
    assert isinstance(event.error, DeadlineError)
    assert session.tokens == 2 + 1  # the held request's prompt and second token


def test_a_full_queue_says_when_to_come_back(session):
    engine = new_engine(session, rows=1, queue_limit=1)
    gate = _held(engine)
    begin(engine, new_request(max_new_tokens=1))
    with pytest.raises(BusyError, match="Try again in") as caught:
        engine.submit(new_request(), lambda _: None)
    gate.go(100)
    engine.close()
    assert caught.value.retry_after >= 0.5


def test_batch_answers_wait_for_interactive_work_of_other_models_and_not_for_ever(session):
    precedence = Precedence()
    other = precedence.seat()
    engine = new_engine(session, precedence=precedence)
    other.begin(Priority.INTERACTIVE)
    began = time.monotonic()
    job = begin(engine, new_request(max_new_tokens=20, priority=Priority.BATCH))
    driver = begin(engine, new_request([8, 9], max_new_tokens=3))
    assert token_ids(driver()) == continuation([8, 9], 3)
    assert time.monotonic() - began < LONGEST_HOLD
    time.sleep(0.2)
    assert session.runs < 3 + 3  # of the job, one at most that the driver's end let through
    time.sleep(LONGEST_HOLD)
    assert 3 < session.runs < 3 + 6
    other.end(Priority.INTERACTIVE)
    assert token_ids(job()) == continuation([5, 6, 7], 20)
    engine.close()


def test_the_driver_gets_the_batch_jobs_row_and_the_job_loses_nothing(session):
    engine = new_engine(session, rows=1, blocks=64)
    job_gate = Gate()
    job = new_request(PROMPTS[7], max_new_tokens=80, priority=Priority.BATCH)
    engine.submit(job, job_gate)
    for _ in range(40):
        job_gate.events.get(timeout=20)
        job_gate.go()
    job_gate.events.get(timeout=20)  # the engine waits here, in the midst of the job
    driver = begin(engine, new_request([8, 9], max_new_tokens=3))
    job_gate.go(1000)
    assert token_ids(driver()) == continuation([8, 9], 3)
    events = [job_gate.events.get(timeout=20)]
    while isinstance(events[-1], TokenEvent):
        events.append(job_gate.events.get(timeout=20))
    engine.close()
    assert events[-1].generated_tokens == 80
    assert token_ids(events) == continuation(PROMPTS[7], 80)[41:]
    read_twice = session.tokens - len(PROMPTS[7]) - 80 - 2 - 3
    assert read_twice <= 2 * BLOCK_TOKENS  # the rest was remembered


def test_what_an_interrupted_prompt_had_read_itself_is_not_counted_as_remembered(
    session, monkeypatch
):
    engine = new_engine(session, rows=1, blocks=64)
    prompt = [n % 50 + 4 for n in range(900)]
    events_of(engine, new_request([*prompt[:160], 60, 61], max_new_tokens=1))
    run, drivers = toy.ToyBinding.run, []

    def interrupted(binding):
        run(binding)
        if session.shapes[-1] == (1, LARGEST_CHUNK):  # a piece of the long prompt
            drivers.append(begin(engine, new_request([8, 9], max_new_tokens=1)))

    monkeypatch.setattr(toy.ToyBinding, "run", interrupted)
    job = events_of(engine, new_request(prompt, max_new_tokens=3, priority=Priority.BATCH))
    engine.close()
    assert token_ids(job) == continuation(prompt, 3)
    assert len(drivers) == 2
    assert job[-1].cached_tokens == 160 <= job[-1].prompt_tokens


def test_a_shared_beginning_is_read_once(engine, session):
    shared = [n % 50 + 4 for n in range(10 * BLOCK_TOKENS)]
    gate = _held(engine)
    before = session.tokens
    waits = [begin(engine, new_request([*shared, 5, n + 4], max_new_tokens=2)) for n in range(4)]
    gate.go(100)
    ends = []
    for number, wait in enumerate(waits):
        events = wait()
        assert token_ids(events) == continuation([*shared, 5, number + 4], 2)
        ends.append(events[-1].cached_tokens)
    assert ends == [0, *[len(shared)] * 3]
    assert session.tokens - before < 2 * len(shared)


def test_a_conversation_continues_from_its_own_memory(engine):
    first = events_of(engine, new_request(PROMPTS[4], max_new_tokens=60))
    conversation = [*PROMPTS[4], *token_ids(first), 11, 12]
    second = events_of(engine, new_request(conversation, max_new_tokens=5))
    assert token_ids(second) == continuation(conversation, 5)
    assert second[-1].cached_tokens > len(conversation) - 2 * BLOCK_TOKENS


def test_little_memory_costs_time_and_never_an_answer(session):
    engine = new_engine(session, rows=2, blocks=3, queue_limit=16)
    gate = _held(engine)
    waits = [begin(engine, new_request(p, max_new_tokens=20)) for p in PROMPTS * 2]
    gate.go(100)
    for prompt, wait in zip(PROMPTS * 2, waits, strict=True):
        assert token_ids(wait()) == continuation(prompt, 20)
    engine.close()


class FailingRows(toy.ToySession):
    """Fails whenever a batch holds the token that it was told."""

    poison = 3  # the toy's language does not have it

    def bind(self, inputs, outputs):
        session, binding = self, super().bind(inputs, outputs)
        run = binding.run

        def poisoned():
            if np.any(binding._arrays["input_ids"] == session.poison):
                raise ExecutionError("out of memory")
            run()

        binding.run = poisoned
        return binding


def test_a_failure_in_a_batch_ends_only_the_request_that_fails_alone():
    session = FailingRows()
    healthy = [[5, 6, 7], [8, 9, 10], [11, 5, 6]]
    engine = new_engine(session, rows=4, queue_limit=16)
    gate = _held(engine)
    waits = [begin(engine, new_request(p, max_new_tokens=12)) for p in healthy]
    poisoned = Sampling(logit_bias=((session.poison, 100.0),))
    sick = begin(engine, new_request([6, 6], sampling=poisoned, max_new_tokens=12))
    gate.go(100)
    for prompt, wait in zip(healthy, waits, strict=True):
        assert token_ids(wait()) == continuation(prompt, 12)
    events = sick()
    assert isinstance(events[-1], FailEvent)
    assert token_ids(events) == [session.poison]
    assert isinstance(events_of(engine, new_request(max_new_tokens=2))[-1], FinishEvent)
    engine.close()


def test_a_fault_in_the_engine_itself_leaves_nobody_hanging(engine, caplog):
    def broken(_now):
        raise ZeroDivisionError("a fault of our own")

    class Broken:
        idle, waiting, live, is_batch_only = False, 0, 0, False
        submit = remove = staticmethod(lambda _: None)
        plan = staticmethod(broken)

    engine._scheduler = Broken()
    (event,) = events_of(engine, new_request())
    assert isinstance(event.error, ExecutionError)
    assert "a fault of our own" in caplog.text
    assert token_ids(events_of(engine, new_request(max_new_tokens=4))) == continuation([5, 6, 7], 4)


@pytest.mark.parametrize("prompt", [[5, 6, 7] * 20, PROMPTS[6], [4, 4, 4, 4, 4, 4]])
def test_guessing_changes_nothing_but_the_number_of_runs(prompt):
    plain, guessing = toy.ToySession(), toy.ToySession()
    outcomes = []
    for session, speculate in ((plain, False), (guessing, True)):
        engine = new_engine(session, blocks=64, speculate=speculate)
        outcomes.append(events_of(engine, new_request(prompt, max_new_tokens=300)))
        engine.close()
    assert token_ids(outcomes[0]) == token_ids(outcomes[1]) == continuation(prompt, 300)
    assert outcomes[0][-1].drafted_tokens == 0
    if outcomes[1][-1].accepted_tokens:
        assert guessing.runs < plain.runs


class Repeating(toy.ToySession):
    """Its language repeats itself: guesses are right."""

    @staticmethod
    def next_token(tokens):
        return tokens[-5] if len(tokens) >= 5 else 4


def test_right_guesses_save_runs(monkeypatch):
    monkeypatch.setattr(toy, "next_token", Repeating.next_token)
    session = toy.ToySession()
    engine = new_engine(session, blocks=64, speculate=True)
    events = events_of(engine, new_request([5, 6, 7, 8, 9], max_new_tokens=100))
    engine.close()
    assert token_ids(events) == [5, 6, 7, 8, 9] * 20
    assert events[-1].accepted_tokens > 70
    assert session.runs < 40


def test_a_sampled_answer_is_the_same_with_guessing():
    request = new_request(
        [5, 6, 7] * 10, sampling=Sampling(temperature=0.6), seed=3, max_new_tokens=200
    )
    answers = []
    for speculate in (False, True):
        engine = new_engine(speculate=speculate)
        answers.append(token_ids(events_of(engine, request)))
        engine.close()
    assert answers[0] == answers[1]


def test_the_state_of_an_idle_engine_is_empty(engine):
    events_of(engine, new_request(PROMPTS[5], max_new_tokens=20))
    while engine.state().live:
        time.sleep(0.001)
    state = engine.state()
    assert (state.live, state.waiting, state.key_value_use) == (0, 0, 0)
    assert state.cache_use > 0


def test_what_a_batch_made_is_told_to_all_before_the_next_run(engine, session):
    runs = [[] for _ in range(3)]
    gate = _held(engine)
    for told in runs:
        request = new_request(max_new_tokens=20)
        engine.submit(request, lambda _, told=told: told.append(session.runs))
    gate.go(10)
    engine.drain(20)
    engine.close()
    # Each of the three joins a run later than the one before; from then on they are one batch.
    assert runs[0][3:19] == runs[1][2:18] == runs[2][1:17]
    assert [later - sooner for sooner, later in pairwise(runs[2][1:19])] == [1] * 17
