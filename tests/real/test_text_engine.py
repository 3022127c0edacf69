"""What the text engine promises, kept by a real language model."""

import json
import queue

import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.text.chat import Message
from outpost_runtime.text.constraint import ConstraintKind
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.request import FinishReason, Sampling, TextRequest, TokenEvent

from examples import bundles
from examples.press_line.faults import load_catalogue

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1800)]

PROMPTS = [
    "The pump of the hydraulic press",
    "Once upon a time there was a robot who",
    "def fibonacci(n):",
    "Berlin, Paris, Rome,",
    "The safety manual says that before opening the gate one must",
    "1 2 3 4 5 6 7",
    "In the year 2050, factories",
    "Question: what is the capital of France? Answer:",
]


FORMS = {
    "a price": {"type": "number"},
    "measurements": {"type": "array", "items": {"type": "number"}},
    "names": {"type": "array", "items": {"type": "string"}},
    "a note": {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]},
    "whatever": {"type": "object"},
    "orders": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "part": {"type": "string"},
                "count": {"type": "integer"},
                "price": {"type": "number", "minimum": 0},
                "urgent": {"type": "boolean"},
            },
            "required": ["part", "count", "price", "urgent"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def exact():
    model = open_model(read_bundle(bundles.path_of("gemma-3-270m", "cpu-fp32")))
    yield model
    model.close()


def _begin(model, request):
    events = queue.SimpleQueue()
    model.engine.submit(request, events.put)
    return events


def _end(events):
    received = [events.get(timeout=600)]
    while isinstance(received[-1], TokenEvent):
        received.append(events.get(timeout=600))
    return received


def _tokens(events):
    return [event.token_id for event in events[:-1]]


def _request(model, prompt, tokens=40, **changes):
    parameters = {"sampling": Sampling(), "max_new_tokens": tokens} | changes
    return TextRequest(prompt_ids=model.prompt_ids(prompt), **parameters)


def test_a_batch_gives_the_very_tokens_of_single_streams_in_fp32(exact):
    requests = [_request(exact, prompt) for prompt in PROMPTS]
    alone = [_end(_begin(exact, request)) for request in requests]
    together = [_end(events) for events in [_begin(exact, request) for request in requests]]
    assert [_tokens(events) for events in together] == [_tokens(events) for events in alone]
    assert max(events[-1].mean_batch_size for events in together) > 4


def test_guessing_changes_no_greedy_token_in_fp32(exact):
    text = "The valve is open. The pump is on. The gate is shut. The valve is open. The pump is"
    request = _request(exact, text, tokens=80)
    guessed = _end(_begin(exact, request))
    exact.engine._speculate = False
    plain = _end(_begin(exact, request))
    exact.engine._speculate = True
    assert _tokens(guessed) == _tokens(plain)
    assert guessed[-1].accepted_tokens > 0
    assert plain[-1].drafted_tokens == 0


def test_an_adapter_gives_the_tokens_of_the_merged_bundle_in_fp32(exact):
    exact.load_adapter(read_bundle(bundles.path_of("press-line-adapter", "cpu-fp32")))
    shelved = exact.adapters.get("press-line-adapter")
    merged = open_model(
        read_bundle(bundles.path_of("press-line", "cpu-fp32")),
        ModelSettings(text=TextLimits(streams=1)),
    )
    questions = [q.question for q in load_catalogue().exam_questions()[:4]]
    texts = [[Message(role="user", content=question)] for question in questions]
    wanted = [_tokens(_end(_begin(merged, _request(merged, text)))) for text in texts]
    merged.close()
    waiting = [
        _begin(
            exact,
            TextRequest(
                prompt_ids=exact.prompt_ids(text, shelved),
                sampling=Sampling(),
                max_new_tokens=40,
                adapter=shelved.adapter,
            ),
        )
        for text in texts
    ]
    beside = _begin(exact, _request(exact, PROMPTS[0]))
    alone = _tokens(_end(beside))
    assert [_tokens(_end(events)) for events in waiting] == wanted
    assert alone == _tokens(_end(_begin(exact, _request(exact, PROMPTS[0]))))
    exact.adapters.unload("press-line-adapter")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [40, 120])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_an_answer_in_json_is_valid_however_short_its_limit_is(exact, form, tokens, temperature):
    request = _request(
        exact,
        "Measured today, as JSON: ",
        tokens,
        sampling=Sampling(temperature=temperature),
        seed=3,
        constraint=exact.constraint(ConstraintKind.JSON_SCHEMA, json.dumps(form)),
    )
    events = _end(_begin(exact, request))
    assert json.loads("".join(event.text for event in events)) is not None
    assert events[-1].generated_tokens <= tokens


def test_a_number_ends_long_before_the_limit(exact):
    constraint = exact.constraint(ConstraintKind.JSON_SCHEMA, json.dumps({"type": "number"}))
    request = _request(
        exact,
        "pi = 3.14159265358979323846264338327950288, e = 2.7182818284590 "
        "and a third is 0.33333333333333333333333333333333333, again: ",
        200,
        constraint=constraint,
    )
    events = _end(_begin(exact, request))
    float("".join(event.text for event in events))
    assert events[-1].reason is FinishReason.END_OF_TEXT
    assert events[-1].generated_tokens < 50
