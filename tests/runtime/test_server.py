"""The wire, from outside: a real server process and real gRPC clients."""

import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc
from outpost.v1 import embeddings_pb2, embeddings_pb2_grpc, text_pb2, text_pb2_grpc

from tests.support.fixtures import CLASSIFIER, DECODER, EMBEDDER
from tests.support.serving import serving

MODEL = "tiny-decoder"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, [DECODER, EMBEDDER, CLASSIFIER], "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def text(channel):
    return text_pb2_grpc.TextStub(channel)


@pytest.fixture
def inference(channel):
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _request(prompt="Hello", **parameters):
    return text_pb2.GenerateRequest(
        model=MODEL,
        prompt=prompt,
        parameters=text_pb2.GenerationParameters(**({"max_new_tokens": 20} | parameters)),
    )


def _refused(call, *arguments):
    def whole_answer():
        answer = call(*arguments)
        return list(answer if hasattr(answer, "__next__") else [answer])

    with pytest.raises(grpc.RpcError) as caught:
        whole_answer()
    return caught.value.code(), caught.value.details()


def _metric(server, name):
    with urllib.request.urlopen(server.metrics) as response:  # noqa: S310 - it is our own
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_an_answer_streams_and_ends_with_one_summary(text):
    responses = list(text.Generate(_request()))
    assert all(response.HasField("piece") for response in responses[:-1])
    assert sum(response.HasField("summary") for response in responses) == 1
    summary = responses[-1].summary
    assert summary.usage.prompt_tokens == 6  # a marker and five bytes
    assert summary.usage.generated_tokens == 20
    assert summary.finish_reason == text_pb2.FINISH_REASON_LENGTH
    assert not summary.HasField("seed")


def test_tokens_and_log_probabilities_come_on_request_only(text):
    request = _request(max_new_tokens=8)
    assert not any(r.piece.tokens for r in text.Generate(request))
    request.return_log_probabilities = True
    tokens = [token for r in text.Generate(request) for token in r.piece.tokens]
    assert len(tokens) == 8
    assert all(token.log_probability <= 0 for token in tokens)
    request.return_log_probabilities = False
    request.return_tokens = True
    again = [token for r in text.Generate(request) for token in r.piece.tokens]
    assert [token.id for token in again] == [token.id for token in tokens]
    assert not any(token.HasField("log_probability") for token in again)


def test_a_chat_is_rendered_with_the_bundles_template(text):
    request = _request()
    request.chat.messages.add(role="user", content="Hi")
    rendered = _request("[user]Hi[assistant]")
    chat, plain = ("".join(r.piece.text for r in text.Generate(r)) for r in (request, rendered))
    assert chat == plain != ""


def test_a_seed_reproduces_a_sampled_answer(text):
    def answer(**parameters):
        responses = list(text.Generate(_request(temperature=1.5, **parameters)))
        return "".join(r.piece.text for r in responses), responses[-1].summary.seed

    first, seed = answer()
    assert answer(seed=seed) == (first, seed)
    assert answer(seed=seed + 1)[0] != first


def test_a_stop_string_ends_the_answer(text):
    whole = "".join(r.piece.text for r in text.Generate(_request(max_new_tokens=40)))
    stop = whole[5:7]
    responses = list(text.Generate(_request(max_new_tokens=40, stop=[stop])))
    assert "".join(r.piece.text for r in responses) == whole[: whole.index(stop)]
    assert responses[-1].summary.finish_reason == text_pb2.FINISH_REASON_STOP_STRING


def test_streams_beside_each_other_get_the_answers_that_they_get_alone(text):
    prompts = [f"prompt {n}" for n in range(6)]
    alone = ["".join(r.piece.text for r in text.Generate(_request(p))) for p in prompts]
    together = [None] * len(prompts)

    def ask(n):
        together[n] = "".join(r.piece.text for r in text.Generate(_request(prompts[n])))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_vanished_client_costs_nothing_more(text, server):
    before = _metric(server, 'outpost_text_queue_wait_seconds_count{model="tiny-decoder"}')
    call = text.Generate(_request(max_new_tokens=240))
    next(call)
    call.cancel()
    started = time.monotonic()
    list(text.Generate(_request(max_new_tokens=1)))
    assert time.monotonic() - started < 5
    after = _metric(server, 'outpost_text_queue_wait_seconds_count{model="tiny-decoder"}')
    assert after == before + 1  # only the second answer was completed


def test_a_cancelled_call_is_counted(text, server):
    name = 'outpost_calls_total{code="CANCELLED",method="/outpost.v1.Text/Generate"}'
    before = _metric(server, name)
    call = text.Generate(_request(max_new_tokens=240))
    next(call)
    call.cancel()
    list(text.Generate(_request(max_new_tokens=1)))
    assert _metric(server, name) == before + 1


def test_a_deadline_that_passes_ends_the_call(text):
    code, _ = _refused(lambda: list(text.Generate(_request(max_new_tokens=200), timeout=0.001)))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (text_pb2.GenerateRequest(model="nope", prompt="x"), "NOT_FOUND", "no model 'nope' here"),
        (text_pb2.GenerateRequest(prompt="x"), "NOT_FOUND", "names no model"),
        (text_pb2.GenerateRequest(model=MODEL), "INVALID_ARGUMENT", "neither a prompt nor a chat"),
        (
            text_pb2.GenerateRequest(model="tiny-embedder", prompt="x"),
            "UNIMPLEMENTED",
            "feature-ex",
        ),
        (_request(temperature=-1), "INVALID_ARGUMENT", "temperature is -1; it must be from 0"),
        (_request(top_p=0), "INVALID_ARGUMENT", "top_p is 0"),
        (_request(top_k=-5), "INVALID_ARGUMENT", "top_k is -5"),
        (_request(max_new_tokens=0), "INVALID_ARGUMENT", "max_new_tokens is 0"),
        (_request(stop=[""]), "INVALID_ARGUMENT", "Stop strings have 1 to"),
        (_request(stop=["x"] * 17), "INVALID_ARGUMENT", "At most 16 stop strings"),
        (_request("x" * 256), "INVALID_ARGUMENT", "has 257 tokens"),
        (_request("x" * 2_000_000), "INVALID_ARGUMENT", "2,000,000 characters"),
    ],
)
def test_a_bad_request_gets_its_code_and_one_sentence(text, request_, code, sentence):
    got, details = _refused(text.Generate, request_)
    assert got.name == code
    assert sentence in details


def test_a_role_that_the_template_refuses_is_an_invalid_argument(text):
    request = _request()
    request.chat.messages.add(role="wizard", content="Hi")
    code, details = _refused(text.Generate, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "roles are user and assistant" in details


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x04\xff\xfe\xfd\xfc",  # field 1, a string that is not UTF-8
        b"\x12\xff\xff\xff\xff\x0f",  # a string that is longer than the message
        b"\xff" * 50,
    ],
)
def test_bytes_that_are_no_message_are_an_invalid_argument(channel, data):
    call = channel.unary_stream("/outpost.v1.Text/Generate")
    code, details = _refused(call, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid message" in details


def test_a_message_of_100_megabytes_is_refused_and_the_server_lives(channel, text):
    call = channel.unary_stream("/outpost.v1.Text/Generate")
    code, details = _refused(call, b"\x0a" + b"x" * 100_000_000)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details
    assert list(text.Generate(_request(max_new_tokens=1)))


def test_embeddings_come_normalized_in_the_order_of_the_texts(channel):
    stub = embeddings_pb2_grpc.EmbeddingsStub(channel)
    texts = [("word " * (n % 9 + 1)).strip() + str(n) for n in range(40)]
    response = stub.Embed(embeddings_pb2.EmbedRequest(model="tiny-embedder", texts=texts))
    vectors = np.array([embedding.values for embedding in response.embeddings])
    one = stub.Embed(embeddings_pb2.EmbedRequest(model="tiny-embedder", texts=texts[7:8]))
    assert vectors.shape == (40, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert vectors[7] == pytest.approx(np.array(one.embeddings[0].values), abs=1e-5)
    assert not any(embedding.truncated for embedding in response.embeddings)


def test_a_long_text_is_cut_and_says_so(channel):
    stub = embeddings_pb2_grpc.EmbeddingsStub(channel)
    response = stub.Embed(embeddings_pb2.EmbedRequest(model="tiny-embedder", texts=["x" * 500]))
    assert response.embeddings[0].truncated
    assert response.embeddings[0].tokens == 64


@pytest.mark.parametrize("count", [0, 257])
def test_too_few_or_too_many_texts_are_refused(channel, count):
    stub = embeddings_pb2_grpc.EmbeddingsStub(channel)
    request = embeddings_pb2.EmbedRequest(model="tiny-embedder", texts=["x"] * count)
    code, details = _refused(stub.Embed, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 to 256 are allowed" in details


def _infer_request(rows=2, **changes):
    request = oip.ModelInferRequest(model_name="tiny-classifier", id="42")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        values = (
            np.zeros((rows, 5), np.int64)
            if name == "token_type_ids"
            else np.ones((rows, 5), np.int64)
        )
        request.inputs.add(name=name, datatype="INT64", shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
    for key, value in changes.items():
        setattr(request, key, value)
    return request


def test_a_tensor_model_answers_over_the_open_inference_protocol(inference):
    response = inference.ModelInfer(_infer_request())
    assert (response.id, response.model_version) == ("42", "1")
    assert (response.outputs[0].name, list(response.outputs[0].shape)) == ("logits", [2, 3])
    logits = np.frombuffer(response.raw_output_contents[0], np.float32)
    assert logits[:3] == pytest.approx(logits[3:], abs=1e-6)


def test_server_and_model_metadata(inference):
    assert inference.ServerLive(oip.ServerLiveRequest()).live
    assert inference.ServerReady(oip.ServerReadyRequest()).ready
    assert inference.ServerMetadata(oip.ServerMetadataRequest()).name == "outpost"
    metadata = inference.ModelMetadata(oip.ModelMetadataRequest(name="tiny-classifier"))
    assert [tensor.name for tensor in metadata.outputs] == ["logits"]
    assert list(metadata.inputs[0].shape) == [-1, -1]


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("tiny-classifier", "", True), ("tiny-classifier", "1", True), ("tiny-classifier", "9", False),
     (MODEL, "", True), ("nope", "", False)],
)  # fmt: skip
def test_an_unknown_model_is_not_ready_which_is_no_error(inference, name, version, ready):
    assert inference.ModelReady(oip.ModelReadyRequest(name=name, version=version)).ready is ready


def _with(change):
    request = _infer_request()
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (_infer_request(model_name="nope"), "NOT_FOUND", "no model 'nope'"),
        (_infer_request(model_version="9"), "NOT_FOUND", "no version '9'"),
        (_infer_request(model_name=MODEL), "UNIMPLEMENTED", "ModelStreamInfer"),
        (_with(lambda r: r.inputs.pop()), "INVALID_ARGUMENT", "3 raw contents for 2 inputs"),
        (
            _with(lambda r: (r.inputs.pop(), r.raw_input_contents.pop())),
            "INVALID_ARGUMENT",
            "missing",
        ),
        (_with(lambda r: setattr(r.inputs[0], "name", "x")), "INVALID_ARGUMENT", "no input 'x'"),
        (_with(lambda r: r.inputs[0].shape.append(1)), "INVALID_ARGUMENT", "the model expects"),
        (_with(lambda r: setattr(r.inputs[0], "datatype", "FP64")), "INVALID_ARGUMENT", "expects"),
        (_with(lambda r: r.outputs.add(name="y")), "INVALID_ARGUMENT", "no output 'y'"),
    ],
)
def test_a_bad_inference_request_gets_its_code_and_one_sentence(
    inference, request_, code, sentence
):
    got, details = _refused(inference.ModelInfer, request_)
    assert got.name == code
    assert sentence in details


def test_a_token_that_does_not_exist_is_an_invalid_argument(inference, server):
    request = _infer_request()
    request.raw_input_contents[0] = np.full((2, 5), 987654, np.int64).tobytes()
    code, details = _refused(inference.ModelInfer, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "The model refuses its input" in details
    assert "987654" not in server.log.read_text()
    assert inference.ModelInfer(_infer_request())


def test_a_batch_that_would_take_gigabytes_is_refused(inference):
    code, details = _refused(inference.ModelInfer, _infer_request(rows=3000))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "has a batch of 3000; this model takes 1 to 32" in details


def test_health_is_told_for_the_server_and_each_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in (
        "",
        "outpost.v1.Text",
        "outpost.v1.Embeddings",
        "inference.GRPCInferenceService",
    ):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_every_service(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"outpost.v1.Text", "outpost.v1.Embeddings", "grpc.health.v1.Health"} <= services
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("outpost.v1.Text").FindMethodByName("Generate")
    assert (
        "temperature" in method.input_type.fields_by_name["parameters"].message_type.fields_by_name
    )


def test_metrics_count_calls_and_tokens(server, text):
    name = 'outpost_tokens_total{kind="generated",model="tiny-decoder"}'
    before = _metric(server, name)
    list(text.Generate(_request(max_new_tokens=7)))
    assert _metric(server, name) == before + 7
    refused = 'outpost_calls_total{code="INVALID_ARGUMENT"'
    before = _metric(server, refused)
    _refused(text.Generate, _request(temperature=-1))
    assert _metric(server, refused) == before + 1


def test_the_log_tells_nothing_of_prompts(server, text):
    list(text.Generate(_request("my secret question")))
    _refused(text.Generate, _request("my secret question", temperature=-1))
    assert "secret" not in server.log.read_text()
