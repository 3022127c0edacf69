"""What a text model's clients can ask for, from outside: a real server, real gRPC clients."""

import http.client
import json
import threading
import time
from contextlib import closing

import grpc
import pytest
from outpost.v1 import adapters_pb2, adapters_pb2_grpc, text_pb2, text_pb2_grpc
from outpost_runtime.store import Store
from outpost_runtime.update.device_keys import provision_keys

from tests.support.fixtures import ADAPTERS, DECODER
from tests.support.serving import serving

MODEL = "tiny-decoder"
ONE, TWO = (folder.name for folder in ADAPTERS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = ("--threads", "1", "--streams", "4", "--kv-memory", "16", "--queue", "4")
    with serving(folder, [DECODER, *ADAPTERS], *options) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def text(channel):
    return text_pb2_grpc.TextStub(channel)


@pytest.fixture
def adapters(channel):
    return adapters_pb2_grpc.AdaptersStub(channel)


def _request(prompt="Hello", *, model=MODEL, adapter="", **parameters):
    return text_pb2.GenerateRequest(
        model=model,
        adapter=adapter,
        prompt=prompt,
        return_tokens=True,
        parameters=text_pb2.GenerationParameters(**({"max_new_tokens": 20} | parameters)),
    )


def _answer(text, request):
    responses = list(text.Generate(request))
    tokens = [token.id for response in responses for token in response.piece.tokens]
    return tokens, "".join(r.piece.text for r in responses), responses[-1].summary


def _refused(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request))
    return caught.value


def test_a_prompt_that_was_read_before_is_remembered(text):
    prompt = "The oil of press four is too hot. " * 2
    first = _answer(text, _request(prompt))
    second = _answer(text, _request(prompt))
    assert (first[0], first[1]) == (second[0], second[1])
    assert second[2].usage.cached_tokens > 40
    assert second[2].usage.prompt_tokens == first[2].usage.prompt_tokens


def test_the_summary_has_the_numbers_that_matter(text):
    summary = _answer(text, _request())[2]
    timings = summary.timings
    assert timings.time_to_first_token_seconds == pytest.approx(
        timings.queue_seconds + timings.prefill_seconds
    )
    assert timings.time_per_output_token_seconds == pytest.approx(timings.decode_seconds / 19)
    assert summary.mean_batch_size >= 1
    assert summary.speculation.accepted_tokens <= summary.speculation.drafted_tokens


def test_the_likeliest_tokens_are_named_when_asked_for(text):
    request = _request()
    request.alternatives = 3
    request.return_log_probabilities = True
    tokens = [token for r in text.Generate(request) for token in r.piece.tokens]
    for token in tokens:
        assert len(token.alternatives) == 3
        assert token.alternatives[0].id == token.id  # greedy takes the likeliest
        assert token.alternatives[0].log_probability == pytest.approx(token.log_probability)


def test_a_bias_decides_and_an_unknown_token_is_refused(text):
    tokens, _, _ = _answer(text, _request(logit_bias={70: 100.0}))
    assert tokens == [70] * 20
    error = _refused(text.Generate, _request(logit_bias={10**6: 1.0}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1000000" in error.details()


def test_penalties_change_an_answer_that_repeats_itself(text):
    repeating, _, _ = _answer(text, _request(logit_bias={70: 100.0}, frequency_penalty=10))
    assert repeating[:8] == [70] * 8
    assert repeating != [70] * 20


def test_an_answer_follows_a_json_schema(text):
    schema = {
        "type": "object",
        "properties": {"code": {"type": "integer", "minimum": 100, "maximum": 999}},
        "required": ["code"],
        "additionalProperties": False,
    }
    request = _request(max_new_tokens=60)
    request.constraint.json_schema = json.dumps(schema)
    _, answer, summary = _answer(text, request)
    assert 100 <= json.loads(answer)["code"] <= 999
    assert summary.finish_reason == text_pb2.FINISH_REASON_END_OF_TEXT


def test_an_answer_follows_a_regular_expression_and_a_grammar(text):
    request = _request()
    request.constraint.regex = "E-[1-3]{3}"
    answer = _answer(text, request)[1]
    assert answer.startswith("E-")
    assert len(answer) == 5
    request.constraint.grammar = 'start: "yes" | "no"'
    assert _answer(text, request)[1] in ("yes", "no")


@pytest.mark.parametrize(
    ("kind", "wrong", "place"),
    [
        (
            "json_schema",
            '{"type": "object", "properties": {"a": {"type": "strin"}}}',
            "/properties/a",
        ),
        ("json_schema", "{", "JSON schema"),
        ("regex", "a(b", "(b"),
        ("grammar", "start: unknown", "unknown"),
    ],
)
def test_a_form_that_cannot_be_compiled_is_refused_with_its_place(text, kind, wrong, place):
    request = _request()
    setattr(request.constraint, kind, wrong)
    error = _refused(text.Generate, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert place in error.details()


@pytest.mark.incident("hostile input", where="JSON schemas that take the compiler all its time")
def test_what_is_compiled_for_long_keeps_neither_known_forms_nor_deadlines(text, server):
    known = _request()
    known.constraint.regex = "E-[1-3]{4}"
    _answer(text, known)
    hostile = []
    for number in (99999989, 99999971):
        request = _request()
        request.constraint.json_schema = json.dumps({"multipleOf": number})
        hostile.append(text.Generate(request))
    time.sleep(0.5)
    began = time.monotonic()
    assert _answer(text, known)[1].startswith("E-")
    answer = time.monotonic() - began
    parameters = {"timeout": 500_000, "regex": "new"}
    with closing(http.client.HTTPConnection(server.http, timeout=30)) as connection:
        body = json.dumps({"text_input": "Hello", "parameters": parameters})
        connection.request("POST", f"/v2/models/{MODEL}/generate", body)
        refused = connection.getresponse()
    waited = time.monotonic() - began - answer
    assert hostile[0].is_active()
    assert refused.status == 504
    assert max(answer, waited) < 3
    for call in hostile:
        call.cancel()


def test_ten_times_too_many_are_refused_with_a_time_to_come_back(text):
    request = _request(max_new_tokens=200)
    outcomes, codes = [], []
    calls = [text.Generate(request) for _ in range(80)]

    def drain(call):
        try:
            outcomes.append(sum(len(r.piece.tokens) for r in call))
        except grpc.RpcError as error:
            codes.append((error.code(), dict(error.trailing_metadata()), error.details()))

    threads = [threading.Thread(target=drain, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) + len(codes) == 80
    assert codes, "nobody was refused"
    for code, metadata, details in codes:
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(metadata["grpc-retry-pushback-ms"]) >= 500
        assert "Try again in" in details
    assert set(outcomes) == {200}


def test_every_request_chooses_its_adapter_and_all_share_the_batch(text):
    alone = {name: _answer(text, _request(adapter=name))[0] for name in ("", ONE, TWO)}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    names = ["", ONE, TWO, ONE]
    calls = [(name, text.Generate(_request(adapter=name))) for name in names]
    for name, call in calls:
        tokens = [token.id for response in call for token in response.piece.tokens]
        assert tokens == alone[name]


def test_an_adapters_name_is_a_models_name_too(text):
    by_name = _answer(text, _request(model=ONE))[0]
    assert by_name == _answer(text, _request(adapter=ONE))[0]


def test_an_adapters_prefixes_serve_no_other(text):
    prompt = "Which adapter has read this before? " * 2
    cached = [
        _answer(text, _request(prompt, adapter=name))[2].usage.cached_tokens
        for name in ("", ONE, TWO, ONE)
    ]
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 40


def test_adapters_come_and_go_while_the_base_answers(text, adapters, server):
    def names():
        return [a.name for a in adapters.List(adapters_pb2.ListAdaptersRequest()).adapters]

    assert names() == sorted([ONE, TWO])
    expected = _answer(text, _request(adapter=TWO))[0]
    running = text.Generate(_request(max_new_tokens=200, adapter=TWO))
    next(running)
    adapters.Unload(adapters_pb2.UnloadAdapterRequest(name=TWO))
    assert sum(len(r.piece.tokens) for r in running) >= 1  # its running answer went on
    assert names() == [ONE]
    error = _refused(text.Generate, _request(adapter=TWO))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert ONE in error.details()
    assert _answer(text, _request())[0]
    loaded = adapters.Load(adapters_pb2.LoadAdapterRequest(name=TWO))
    assert (loaded.model, loaded.digest) == (MODEL, Store(server.store).slot(TWO).active)
    assert _answer(text, _request(adapter=TWO))[0] == expected


def test_many_who_reload_an_adapter_keep_nobody_from_an_answer(text, adapters):
    running = text.Generate(_request(max_new_tokens=200, adapter=ONE))
    next(running)
    loads = []
    for _ in range(20):  # what is loaded already would not be loaded again
        adapters.Unload.future(adapters_pb2.UnloadAdapterRequest(name=ONE))
        loads.append(adapters.Load.future(adapters_pb2.LoadAdapterRequest(name=ONE)))
    assert len(_answer(text, _request(max_new_tokens=5))[0]) == 5
    for load in loads:
        assert load.exception() is None or load.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    running.cancel()


@pytest.mark.parametrize("name", ["nobody", MODEL])
def test_what_is_no_adapter_cannot_be_loaded(adapters, name):
    with pytest.raises(grpc.RpcError) as caught:
        adapters.Load(adapters_pb2.LoadAdapterRequest(name=name))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_conversation_goes_on_after_the_server_was_restarted(tmp_path):
    prompt = "The gate of press two does not close, whatever we do. " * 2
    seen = []
    for folder in ("first", "second"):
        options = ("--threads", "1", "--keep-prompts", str(tmp_path / "prompts"))
        with (
            serving(tmp_path / folder, [DECODER], *options) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            seen.append(_answer(text_pb2_grpc.TextStub(channel), _request(prompt)))
    assert seen[0][0] == seen[1][0]
    assert "UNENCRYPTED" in (tmp_path / "second" / "server.log").read_text()
    assert [summary.usage.cached_tokens > 60 for _, _, summary in seen] == [False, True]


def test_kept_prompts_are_encrypted_on_a_box_that_has_keys(tmp_path):
    prompt = "The gate of press two does not close, whatever we do. " * 2
    provision_keys(tmp_path / "box" / "store")
    options = ("--threads", "1", "--keep-prompts", str(tmp_path / "prompts"))
    seen = []
    for _ in range(2):
        with (
            serving(tmp_path / "box", [DECODER], *options) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            seen.append(_answer(text_pb2_grpc.TextStub(channel), _request(prompt))[2])
    assert [summary.usage.cached_tokens > 60 for summary in seen] == [False, True]
    assert [path.suffix for path in (tmp_path / "prompts").iterdir()] == [".sealed"]
    assert "UNENCRYPTED" not in (tmp_path / "box" / "server.log").read_text()


def test_nothing_of_a_prompt_is_on_disk_unless_asked_for(tmp_path):
    prompt = "A secret that stays in memory. "
    with (
        serving(tmp_path, [DECODER], "--threads", "1") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        _answer(text_pb2_grpc.TextStub(channel), _request(prompt))
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not any(name.endswith(".safetensors") and len(name) > 64 for name in names)
    assert b"secret" not in (tmp_path / "server.log").read_bytes()
