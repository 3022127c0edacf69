import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from outpost_runtime.errors import (
    ExecutionError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.text.constraint import Constraint, ConstraintCompiler, ConstraintKind
from outpost_runtime.text.notation import MAX_CONSTRAINT_CHARACTERS

from tests.support import schemas
from tests.support.fixtures import DECODER

SCHEMA, REGEX, GRAMMAR = ConstraintKind
BYTES = DECODER / "tokenizer.json"
END, LOGITS = 2, 320  # the tokenizer knows 260 ids
SPECIAL = {"pad": 0, "bos": 1, "unk": 3}


def _compiler(file=BYTES, *, vocabulary_size=LOGITS, end_tokens=(END,), **options):
    return ConstraintCompiler(
        file.read_bytes,
        vocabulary_size=vocabulary_size,
        end_tokens=frozenset(end_tokens),
        **options,
    )


@pytest.fixture(scope="module")
def compiler():
    compiler = _compiler()
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def byte_level():
    return tokenizers.Tokenizer.from_file(str(BYTES))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer of Gemma's kind: U+2581 for spaces, bytes for what it does not know."""
    vocabulary = ["<pad>", "<end>", "<turn>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += ["▁", *'abcdefghij"{}[]:,0123456789', "ab", "▁a", "▁ab", '{"', '":', "ü", "工"]
    vocabulary += ["<plain>"]
    ids = {token: index for index, token in enumerate(vocabulary)}
    merges = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("{", '"'), ('"', ":")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, byte_fallback=True))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<end>", "<turn>"])
    tokenizer.add_tokens(["<plain>"])
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def sentencepiece_compiler(sentencepiece):
    compiler = _compiler(sentencepiece, vocabulary_size=304, end_tokens=(1,))
    yield compiler
    compiler.close()


def _allowed(constraint, size=LOGITS):
    return np.flatnonzero(constraint.apply(np.zeros(size, np.float32)) == 0).tolist()


def _answer(constraint, seed, *, size=LOGITS, ends=(END,)):
    """What a model with random logits says; the constraint must end it."""
    random = np.random.default_rng(seed)
    tokens = []
    while len(tokens) < 5000:
        token = int(constraint.apply(random.normal(size=size).astype(np.float32)).argmax())
        constraint.advance(token)
        if token in ends:
            return tokens
        tokens.append(token)
    raise AssertionError("the answer does not end")


def _ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def _take(constraint, tokenizer, text):
    for token in _ids(tokenizer, text):
        constraint.advance(token)


def test_two_hundred_random_schemas_give_two_hundred_valid_answers(compiler, byte_level):
    answers = []
    for seed in range(200):
        schema = schemas.random_schema(seed)
        constraint = compiler.compile(SCHEMA, json.dumps(schema))
        answer = schemas.parse(byte_level.decode(_answer(constraint, seed)))
        assert schemas.faults(schema, answer) == []
        answers.append(answer)
    assert sum(answer != {} for answer in answers) > 100  # the schemas do ask for something


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 5}, 6),
        ({"type": "integer"}, True),
        ({"type": "number", "exclusiveMaximum": 1}, 1),
        ({"type": "string", "maxLength": 2}, "abc"),
        ({"type": "string", "maxLength": 9, "pattern": "^a"}, "ba"),
        ({"enum": [1, "a"]}, True),
        ({"anyOf": [{"type": "null"}, {"const": "a"}]}, "b"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, {}),
        ({"type": "object", "properties": {}, "required": []}, {"a": 1}),
        ({"type": "array", "items": {"type": "null"}, "minItems": 0, "maxItems": 2}, [None, 1]),
    ],
)
def test_the_validator_of_these_tests_refuses(schema, value):
    assert schemas.faults(schema, value) != []


def test_json_is_compact_even_if_the_model_would_rather_write_spaces(compiler, byte_level):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"const": 1}}},
        "additionalProperties": False,
    }
    constraint = compiler.compile(SCHEMA, json.dumps(schema))
    spaces = set(_ids(byte_level, " \n\t\r"))
    for token in _ids(byte_level, '{"a":[1,1]}'):
        assert not spaces & set(_allowed(constraint))
        constraint.advance(token)
    assert _allowed(constraint) == [END]


@pytest.mark.parametrize(
    "pattern", [r"[a-f0-9]{8}", r"(ja|nein), größer als \d{1,3} °C", r"(?s:.){0,20}", r"工具🛠+x"]
)
def test_answers_match_the_whole_regular_expression(compiler, byte_level, pattern):
    for seed in range(5):
        text = byte_level.decode(_answer(compiler.compile(REGEX, pattern), seed))
        assert re.fullmatch(pattern, text)


def test_answers_follow_a_grammar(compiler, byte_level):
    grammar = 'start: "(" item ("," item){0,3} ")"\nitem: start | /[0-9]{1,3}/ | "π"\n'
    for seed in range(5):
        text = byte_level.decode(_answer(compiler.compile(GRAMMAR, grammar), seed))
        while (shorter := re.sub(r"\((\d{1,3}|π)(,(\d{1,3}|π)){0,3}\)", "π", text)) != text:
            text = shorter
        assert text == "π"


@pytest.mark.parametrize(
    ("kind", "text", "place"),
    [
        (SCHEMA, '{"type":\n "string",, }', "line 2 column 11"),
        (SCHEMA, "[]", "must be a table, not a list"),
        (SCHEMA, '{"type": "objekt"}', "wrong: Invalid type: objekt"),
        (SCHEMA, '{"properties": {"a/b": {"anyOf": [{"type": "string"}, {"not": {}}]}}}',
         "wrong at /properties/a~1b/anyOf/1: "),
        (SCHEMA, '{"items": {"type": "string", "pattern": "ab(cd"}}', "at /items, at '(cd': "),
        (SCHEMA, '{"$defs": {"x": {"items": {"type": 3}}}, "items": {"$ref": "#/$defs/x"}}',
         "at /$defs/x/items: "),
        (SCHEMA, '{"type": "null", "x-guidance": {"whitespace_flexible": true}}', "'x-guidance'"),
        (SCHEMA, '{"type": "number", "maximum": 1e999}', "Out of range"),
        (SCHEMA, '{"items": ' * 2000 + "{}" + "}" * 2000, "recursion"),
        (SCHEMA, '{"enum": []}', "Unsatisfiable"),
        (SCHEMA, '{"items": {"oneOf": [{}, {"type": "string"}]}}',
         "at /items: oneOf constraints are not supported. Correct"),
        (SCHEMA, '{"allOf": [{"$ref": "#"}]}', "nothing fits it"),
        (REGEX, "ab(c", "at '(c': unclosed group"),
        (REGEX, "a/b\n(c", "at '(c': unclosed group"),
        (REGEX, r"a(?=b)", "at '(?=b)': look-around"),
        (REGEX, r"a\b", "not supported"),
        (REGEX, "\ud800", "not valid Unicode"),
        (GRAMMAR, 'start: "a"\n  b\n', "at line 2, column 4: "),
        (GRAMMAR, 'start: "a" b\nb: /x(/', "at line 2, column 4, at '(': unclosed group"),
        (GRAMMAR, 'begin: "a"', "no start rule"),
        (GRAMMAR, 'start: <nobody> "a"', 'line 1, column 8: unknown special token: "<nobody>".'),
        (GRAMMAR, "", "no start rule"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_with_its_place(compiler, kind, text, place):
    with pytest.raises(InvalidInputError) as caught:
        compiler.compile(kind, text)
    assert place in str(caught.value)
    assert kind.value in caught.value.message


@pytest.mark.parametrize("kind", ConstraintKind)
def test_a_text_that_is_too_long_is_refused(compiler, kind):
    with pytest.raises(InvalidInputError, match="65,537 characters"):
        compiler.compile(kind, "a" * (MAX_CONSTRAINT_CHARACTERS + 1))


PATHOLOGICAL = {
    "minutes and gigabytes": (SCHEMA, '{"type": "integer", "multipleOf": 99999989}'),
    "endless intersections": (
        GRAMMAR,
        "start: A\nA: " + " & ".join(f"/(.*a{i}){{50}}.*/" for i in range(300)),
    ),
    "a stack overflow from rules": (
        GRAMMAR,
        "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(4500)) + 'a4500: "x"',
    ),
    "a stack overflow from references": (
        SCHEMA,
        json.dumps(
            {"$ref": "#/$defs/0", "$defs": {
                str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1300)
            } | {"1300": {}}}
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_a_text_that_would_take_the_server_down_is_refused_and_the_next_one_compiled(name):
    compiler = _compiler(trial_seconds=0.5)
    with pytest.raises(InvalidInputError, match="too complex"):
        compiler.compile(*PATHOLOGICAL[name])
    assert compiler.compile(REGEX, "x").accepts([END]) == 0
    compiler.close()


def test_what_was_tried_is_not_tried_again():
    compiler = _compiler(trial_seconds=0.5)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="too complex"):
            compiler.compile(*PATHOLOGICAL["minutes and gigabytes"])
        assert compiler._trials._process is None  # the first has ended it, the second needs none
    with pytest.raises(InvalidInputError, match=re.escape("(b")):
        compiler.compile(REGEX, "a(b")
    assert not compiler.knows(REGEX, "ab")
    compiler.compile(REGEX, "ab")
    assert compiler.knows(REGEX, "ab")
    assert not compiler.knows(GRAMMAR, "ab")
    with compiler._trials._lock:  # while somebody's trial takes its time
        assert compiler.compile(REGEX, "ab").accepts([END]) == 0
    compiler.close()


def test_a_trial_that_somebody_else_ended_is_no_verdict():
    compiler = _compiler(trial_seconds=60)
    compiler.compile(REGEX, "a")
    form = PATHOLOGICAL["minutes and gigabytes"]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(compiler.compile, *form)
        while not compiler._trials._lock.locked():
            assert not pending.done()
        time.sleep(0.2)  # from here on the process has it
        compiler._trials._process.kill()
        assert isinstance(pending.exception(), InvalidInputError)
    assert not compiler.knows(*form)
    compiler.close()


def test_a_form_that_grows_too_wide_on_the_way_fails_the_answer(compiler, byte_level):
    wide = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(400)}}
    schema = {"type": "object", "properties": {"a": wide}, "required": ["a"]}
    constraint = compiler.compile(SCHEMA, json.dumps(schema))
    _take(constraint, byte_level, '{"a":{')
    with pytest.raises(ExecutionError, match="any further"):
        _allowed(constraint)


def test_ids_that_the_tokenizer_does_not_know_are_never_allowed(compiler):
    for kind, text in ((REGEX, r"(?s:.)*"), (GRAMMAR, 'start: (<[*]> | "a")*')):
        constraint = compiler.compile(kind, text)
        assert 200 < max(_allowed(constraint)) < 260
        assert constraint.accepts([260]) == constraint.accepts([LOGITS + 5]) == 0


def test_a_model_with_fewer_logits_than_its_tokenizer_has_tokens():
    compiler = _compiler(vocabulary_size=100)
    allowed = _allowed(compiler.compile(REGEX, r"(?s:.)*"), size=100)
    assert allowed == [END, *range(4, 98)]  # the last two begin no character
    compiler.close()


def test_special_tokens_are_no_text(compiler):
    allowed = _allowed(compiler.compile(REGEX, r"(?s:.)*"))
    assert not set(SPECIAL.values()) & set(allowed)


def test_the_answer_may_end_only_where_it_is_complete(compiler, byte_level):
    constraint = compiler.compile(REGEX, "a+b?")
    (a,), (b,) = (_ids(byte_level, text) for text in "ab")
    assert _allowed(constraint) == [a]
    constraint.advance(a)
    assert _allowed(constraint) == [END, a, b]
    assert not constraint.is_complete
    constraint.advance(b)
    assert _allowed(constraint) == [END]
    assert constraint.is_complete


def test_every_end_token_may_end_and_none_may_stand_inside(sentencepiece):
    tokenizer = tokenizers.Tokenizer.from_file(str(sentencepiece))
    plain = tokenizer.token_to_id("<plain>")  # no special token: its name could be text
    ends = {1, 2, plain}
    compiler = _compiler(sentencepiece, vocabulary_size=304, end_tokens=(*ends, 999))
    constraint = compiler.compile(SCHEMA, '{"type": "string", "maxLength": 9}')
    _take(constraint, tokenizer, '"a')
    assert not ends & set(_allowed(constraint, 304))
    _take(constraint, tokenizer, '"')
    assert set(_allowed(constraint, 304)) == ends
    compiler.close()


def test_a_grammar_may_name_the_end_token_that_it_wants(compiler, byte_level):
    constraint = compiler.compile(GRAMMAR, 'start: "a" <eos>')
    _take(constraint, byte_level, "a")
    assert _allowed(constraint) == [END]


def test_an_end_token_changes_nothing(compiler, byte_level):
    constraint = compiler.compile(REGEX, "ab")
    _take(constraint, byte_level, "a")
    before = _allowed(constraint)
    constraint.advance(END)
    assert _allowed(constraint) == before


def test_the_logits_are_left_alone(compiler):
    logits = np.arange(LOGITS, dtype=np.float32)
    constraint = compiler.compile(REGEX, "a")
    masked = constraint.apply(logits)
    assert masked.dtype == np.float32
    assert logits.tolist() == list(range(LOGITS))
    assert [masked[i] for i in np.flatnonzero(masked > -np.inf)] == _allowed(constraint)


def test_a_draft_is_judged_without_a_change_of_state(compiler, byte_level):
    constraint = compiler.compile(SCHEMA, '{"enum": ["abc", "abd", true]}')
    ids = _ids(byte_level, '"abd"')
    _take(constraint, byte_level, '"a')
    before = _allowed(constraint)
    rest = ids[2:]
    assert constraint.accepts(rest) == 3
    assert constraint.accepts([*rest, END]) == 4
    assert constraint.accepts([*rest, END, END]) == 4
    assert constraint.accepts([*rest, ids[0]]) == 3
    assert constraint.accepts([rest[0], END]) == 1
    assert constraint.accepts([END]) == constraint.accepts([]) == 0
    assert constraint.accepts([rest[0], -1]) == constraint.accepts([rest[0], LOGITS]) == 1
    assert _allowed(constraint) == before
    _take(constraint, byte_level, 'bd"')
    assert constraint.accepts([END, END]) == 1
    assert constraint.accepts(rest) == 0
    assert constraint.is_complete


def test_drafts_and_masks_agree_on_every_token(compiler, byte_level):
    constraint = compiler.compile(SCHEMA, '{"type": "object", "properties": {"a": {}}}')
    for token in _ids(byte_level, '{"a":[-1.5e3,"x\\u00'):
        allowed = _allowed(constraint)
        assert allowed == [i for i in range(LOGITS) if constraint.accepts([i]) == 1]
        constraint.advance(token)


@pytest.mark.parametrize("text", ["a▁b", "<turn>", " <end> ab", "ü工 🛠", "<0x41>", "▁▁"])
def test_prescribed_text_comes_out_as_prescribed(sentencepiece, sentencepiece_compiler, text):
    # llguidance would force the tokens that the tokenizer makes of it, special ones and all.
    tokenizer = tokenizers.Tokenizer.from_file(str(sentencepiece))
    for seed in range(3):
        schema = {"type": "object", "properties": {text: {"const": text}}, "required": [text],
                  "additionalProperties": False}  # fmt: skip
        constraint = sentencepiece_compiler.compile(SCHEMA, json.dumps(schema))
        tokens = _answer(constraint, seed, size=304, ends=(1,))
        assert schemas.parse(tokenizer.decode(tokens)) == {text: text}


def test_random_schemas_with_spaces_and_byte_tokens(sentencepiece, sentencepiece_compiler):
    tokenizer = tokenizers.Tokenizer.from_file(str(sentencepiece))
    for seed in range(20):
        schema = schemas.random_schema(seed)
        constraint = sentencepiece_compiler.compile(SCHEMA, json.dumps(schema))
        text = tokenizer.decode(_answer(constraint, seed, size=304, ends=(1,)))
        assert schemas.faults(schema, schemas.parse(text)) == []


def test_a_token_that_is_not_allowed_fails_the_answer_without_quoting_it(compiler, byte_level):
    constraint = compiler.compile(REGEX, "secret")
    _take(constraint, byte_level, "sex")
    for _ in range(2):
        with pytest.raises(ExecutionError) as caught:
            constraint.apply(np.zeros(LOGITS, np.float32))
        assert "se" not in str(caught.value).split("(")[1].split(")")[0]
    with pytest.raises(ExecutionError):
        constraint.accepts(_ids(byte_level, "c"))


def test_a_form_that_the_tokens_cannot_spell_fails_the_answer():
    compiler = _compiler(vocabulary_size=30)  # the letters are behind
    constraint = compiler.compile(REGEX, "1a")
    constraint.advance(20)
    with pytest.raises(ExecutionError, match="No token"):
        constraint.apply(np.zeros(30, np.float32))
    compiler.close()


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(file))
    with pytest.raises(UnsupportedError, match="tokenizer"):
        _compiler(file, end_tokens=(0,)).compile(REGEX, "a")


def test_a_model_without_an_end_token_is_refused():
    with pytest.raises(UnsupportedError, match="no end token"):
        _compiler(end_tokens=()).compile(REGEX, "a")


def test_nothing_is_read_or_started_before_the_first_constraint(tmp_path):
    _compiler(tmp_path / "missing.json").close()


def test_a_closed_compiler_and_its_constraints_say_so():
    compiler = _compiler()
    constraint = compiler.compile(REGEX, "ab")
    compiler.close()
    compiler.close()
    with pytest.raises(UnavailableError):
        compiler.compile(REGEX, "ab")
    with pytest.raises(UnavailableError):
        constraint.advance(4)


def test_closing_does_not_wait_for_a_long_trial():
    compiler = _compiler(trial_seconds=60)
    compiler.compile(REGEX, "a")  # reads the tokenizer and starts the process
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(compiler.compile, *PATHOLOGICAL["minutes and gigabytes"])
        while not compiler._trials._lock.locked():
            assert not pending.done()
        compiler.close()
        assert isinstance(pending.exception(), UnavailableError)


def test_the_library_writes_nothing(capfd):
    compiler = _compiler(trial_seconds=0.2)
    for kind, text in ((SCHEMA, '{"not": {}}'), (REGEX, "("), (GRAMMAR, "start: a"), (REGEX, "a")):
        try:
            constraint = compiler.compile(kind, text)
        except InvalidInputError:
            continue
        constraint.advance(4)
        with pytest.raises(ExecutionError):
            constraint.is_complete  # noqa: B018
    with pytest.raises(InvalidInputError):
        compiler.compile(*PATHOLOGICAL["a stack overflow from rules"])
    compiler.close()
    assert capfd.readouterr() == ("", "")


def test_constraints_are_compiled_and_used_by_several_threads(byte_level):
    compiler = _compiler()

    def run(seed):
        schema = schemas.random_schema(seed)
        tokens = _answer(compiler.compile(SCHEMA, json.dumps(schema)), seed)
        return schemas.faults(schema, schemas.parse(byte_level.decode(tokens)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(24))) == [[]] * 24
    compiler.close()


class _WatchedMatcher:
    """A matcher that notices two callers at once, and waits when it is told to."""

    def __init__(self, matcher):
        self._matcher = matcher
        self._busy = threading.Lock()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.threads = set()
        self.masks = 0

    def __getattr__(self, name):
        def call(*arguments):
            assert self._busy.acquire(blocking=False), "two callers at once"
            try:
                self.threads.add(threading.get_ident())
                if name == "compute_bitmask":
                    assert self.may_go_on.wait(20)
                    self.masks += 1
                return getattr(self._matcher, name)(*arguments)
            finally:
                self._busy.release()

        return call


@pytest.fixture
def watched(compiler):
    constraint = compiler.compile(REGEX, "[ab]*")
    assert not constraint.is_complete
    matcher = _WatchedMatcher(constraint._matcher)
    return matcher, Constraint(matcher, constraint._vocabulary, constraint._worker, None)


def test_masks_are_computed_while_the_owner_does_something_else(watched, byte_level):
    matcher, constraint = watched
    assert not constraint.is_complete
    done = matcher.masks
    matcher.may_go_on.clear()
    _take(constraint, byte_level, "a")  # returns although no mask can be computed
    assert matcher.masks == done
    matcher.may_go_on.set()
    assert _allowed(constraint) == [END, *_ids(byte_level, "ab")]
    assert matcher.masks == done + 1


def test_a_matcher_is_only_ever_touched_by_one_thread(watched, byte_level):
    matcher, constraint = watched
    for _ in range(50):
        _take(constraint, byte_level, "ab")  # without waiting in between
        assert constraint.accepts(_ids(byte_level, "ba")) == 2
        constraint.apply(np.zeros(LOGITS, np.float32))
    assert len(matcher.threads) == 1
    assert threading.get_ident() not in matcher.threads


def test_a_panic_of_the_library_fails_the_answer_and_not_the_thread(watched):
    class Panic(BaseException):
        pass

    matcher, constraint = watched

    def panic(_token):
        raise Panic

    matcher.consume_token = panic
    constraint.advance(4)
    with pytest.raises(ExecutionError):
        constraint.is_complete  # noqa: B018
