import json

import numpy as np
import pytest
import tokenizers
from outpost_runtime.text.answer import Answer
from outpost_runtime.text.constraint import ConstraintCompiler, ConstraintKind
from outpost_runtime.text.digits import LONGEST, LONGEST_EXPONENT, Digits
from outpost_runtime.text.request import FinishReason, Sampling, TextRequest

from tests.support import schemas
from tests.support.fixtures import DECODER

SCHEMA = ConstraintKind.JSON_SCHEMA
TOKENIZER = DECODER / "tokenizer.json"
END, LOGITS = 2, 320

ENDLESS = {
    "a text": {"type": "string"},
    "a list of numbers": {"type": "array", "items": {"type": "number"}},
    "anything": {"type": "array"},
    "a tree": {
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "$ref": "#/$defs/node",
    },
    "orders": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "part": {"enum": ["pump", "valve", "größer"]},
                "count": {"type": "integer", "minimum": 10},
                "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                "note": {"type": "string", "minLength": 4},
                "weight": {"type": ["number", "null"]},
            },
            "required": ["part", "count", "code", "note", "weight"],
        },
        "minItems": 1,
    },
}


@pytest.fixture(scope="module")
def compiler():
    compiler = ConstraintCompiler(
        TOKENIZER.read_bytes, vocabulary_size=LOGITS, end_tokens=frozenset([END])
    )
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(TOKENIZER))


class Rambler:
    """A model that never wants to end: more of everything, in a mood of its own."""

    def __init__(self, tokenizer, seed):
        self.random = np.random.default_rng(seed)
        self.liked = np.zeros(LOGITS, np.float32)
        self.liked[tokenizer.encode("0123456789,[{abé\\", add_special_tokens=False).ids] = 2
        self.liked[tokenizer.encode('"]}', add_special_tokens=False).ids] = -8
        self.liked[END] = -1000

    def logits(self):
        return self.liked + self.random.normal(size=LOGITS).astype(np.float32)


def _answer(compiler, tokenizer, schema, seed, limit):
    """What a model says that never wants to end; the text, and why it ended."""
    request = TextRequest(
        prompt_ids=(5,),
        sampling=Sampling(),
        constraint=compiler.compile(SCHEMA, json.dumps(schema)),
    )
    answer = Answer(request, decode_text=tokenizer.decode, end_tokens=frozenset([END]), limit=limit)
    model, text = Rambler(tokenizer, seed), ""
    while answer.reason is None:
        event = answer.take(model.logits())
        text += event.text if event else ""
    return text + answer.finish(), answer.reason


@pytest.mark.parametrize("limit", [130, 200])
@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_that_would_never_end_is_closed_before_its_limit(
    compiler, tokenizer, schema, limit
):
    for seed in range(5):
        text, reason = _answer(compiler, tokenizer, schema, seed, limit)
        json.loads(text)
        assert reason is FinishReason.LENGTH


def test_a_closed_answer_still_fits_its_schema(compiler, tokenizer):
    for seed in range(60):
        schema = {"type": "array", "items": schemas.random_schema(seed), "minItems": 0}
        text, _ = _answer(compiler, tokenizer, schema, seed, 250)
        for item in schemas.parse(text):
            assert schemas.faults(schema["items"], item) == []


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_a_number_ends_by_itself(compiler, tokenizer, kind):
    for seed in range(10):
        text, reason = _answer(compiler, tokenizer, {"type": kind}, seed, 1000)
        json.loads(text)
        assert reason is FinishReason.END_OF_TEXT
        assert len(text) <= 3 * LONGEST


def test_a_number_that_must_be_longer_may_be_longer(compiler, tokenizer):
    text, reason = _answer(compiler, tokenizer, {"const": 10**30}, 0, 1000)
    assert (int(text), reason) == (10**30, FinishReason.END_OF_TEXT)


def test_digits_in_a_string_have_no_limit(compiler, tokenizer):
    text, _ = _answer(compiler, tokenizer, {"type": "string", "pattern": "^[0-9]{60}$"}, 0, 1000)
    assert len(json.loads(text)) == 60


def test_an_answer_for_which_the_limit_is_too_short_anyway_is_cut_as_ever(compiler, tokenizer):
    schema = {"type": "string", "minLength": 50, "maxLength": 60}
    text, reason = _answer(compiler, tokenizer, schema, 0, 10)
    assert reason is FinishReason.LENGTH
    assert len(text) <= 10


def test_an_answer_that_ends_in_time_is_left_alone(compiler, tokenizer):
    schema = {"const": {"a": [1, 2, 3]}}
    text, reason = _answer(compiler, tokenizer, schema, 0, 15)
    assert (text, reason) == ('{"a":[1,2,3]}', FinishReason.END_OF_TEXT)


@pytest.mark.parametrize(
    ("text", "enough"),
    [
        ("1" * LONGEST, True),
        ("[" + "1" * (LONGEST - 1), False),
        ('{"a":-' + "7" * LONGEST, True),
        ("0." + "3" * LONGEST, True),
        ("1" * LONGEST + ".", False),
        ("1e" + "1" * LONGEST_EXPONENT, True),
        ("1E-" + "1" * LONGEST_EXPONENT, True),
        ("[true,1" + "1" * LONGEST_EXPONENT, False),
        ('"' + "1" * LONGEST, False),
        ('"a\\"' + "1" * LONGEST, False),
        ('"a\\\\",' + "1" * LONGEST, True),
    ],
)
def test_digits_are_counted_outside_of_strings(text, enough):
    at_once, in_bytes = Digits(), Digits()
    at_once.take(text.encode())
    for byte in text.encode():
        in_bytes.take(bytes([byte]))
    assert at_once.are_enough == in_bytes.are_enough == enough
