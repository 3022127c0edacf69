"""The HTTP form from outside: a real server and plain requests."""

import contextlib
import gzip
import http.client
import json
import socket
import struct
import time
import zlib

import pytest
from outpost_runtime.bundle import read_bundle
from outpost_runtime.server.http import MOST_REQUESTS

from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER
from tests.support.serving import serving

_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    bundles = [DECODER, EMBEDDER, CLASSIFIER, ADAPTERS[0]]
    with serving(folder, bundles, "--threads", "1") as running:
        yield running


class _Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self):
        return json.loads(self.body)


@pytest.fixture
def ask(server):
    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(server.http, timeout=30)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = _Answer(connection.getresponse())
        connection.close()
        return answer

    return ask


def _inputs(rows=1, columns=3):
    names = ("input_ids", "attention_mask", "token_type_ids")
    data = [1] * (rows * columns)
    return [
        {"name": name, "datatype": "INT64", "shape": [rows, columns], "data": data}
        for name in names
    ]


_INFER = "/v2/models/tiny-classifier/infer"


def test_health_metadata_configuration_and_statistics(ask):
    assert ask("GET", "/v2/health/live").status == 200
    assert ask("GET", "/v2/health/ready").status == 200
    assert ask("GET", "/v2").json()["name"] == "outpost"
    assert ask("GET", "/v2/models/tiny-classifier/ready").status == 200
    assert ask("GET", "/v2/models/tiny-classifier/versions/1/ready").status == 200
    assert ask("GET", "/v2/models/tiny-classifier/versions/7/ready").status == 400
    assert ask("GET", "/v2/models/nope/ready").status == 400
    metadata = ask("GET", "/v2/models/tiny-classifier").json()
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert ask("GET", "/v2/models/tiny-classifier/config").json()["max_batch_size"] == 32
    before = ask("GET", "/v2/models/tiny-classifier/stats").json()["model_stats"][0]
    ask("POST", _INFER, {"inputs": _inputs(2)})
    after = ask("GET", "/v2/models/tiny-classifier/stats").json()["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    names = {m["name"] for m in ask("GET", "/v2/models/stats").json()["model_stats"]}
    assert names == {"tiny-classifier", "tiny-decoder", "tiny-embedder"}


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("GET", "/v2/cudasharedmemory/status", "CUDA"),
        ("POST", "/v2/cudasharedmemory/region/r/register", "CUDA"),
        ("GET", "/v2/trace/setting", "metrics"),
        ("POST", "/v2/models/tiny-classifier/trace/setting", "metrics"),
        ("POST", "/v2/logging", "log"),
    ],
)
def test_parts_of_the_protocol_that_are_not_here_say_so(ask, method, path, sentence):
    answer = ask(method, path)
    assert answer.status == 501
    assert sentence in answer.json()["error"]


def test_inference_in_json_and_with_binary_tensors(ask):
    plain = ask("POST", _INFER, {"id": "7", "inputs": _inputs(2)}).json()
    assert (plain["id"], plain["model_version"]) == ("7", "1")
    assert plain["outputs"][0]["shape"] == [2, 3]
    document = {"inputs": _inputs(2), "parameters": {"binary_data_output": True}}
    raw = (1).to_bytes(8, "little") * 6
    for tensor in document["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(document).encode()
    answer = ask("POST", _INFER, head + 3 * raw, **{_LENGTH: str(len(head))})
    length = int(answer.headers[_LENGTH])
    described = json.loads(answer.body[:length])["outputs"][0]
    assert described["parameters"] == {"binary_data_size": 24}
    assert list(struct.unpack("<6f", answer.body[length:])) == pytest.approx(
        plain["outputs"][0]["data"]
    )


def test_bodies_are_unpacked_and_packed_as_the_client_wants(ask):
    body = json.dumps({"inputs": _inputs()}).encode()
    plain = ask("POST", _INFER, body).json()["outputs"]
    for name, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {"Content-Encoding": name, "Accept-Encoding": name}
        answer = ask("POST", _INFER, pack(body), **headers)
        assert answer.headers["Content-Encoding"] == name
        unpack = gzip.decompress if name == "gzip" else zlib.decompress
        assert json.loads(unpack(answer.body))["outputs"] == plain


def test_classes_are_named(ask):
    outputs = [{"name": "logits", "parameters": {"classification": 1}}]
    answer = ask("POST", _INFER, {"inputs": _inputs(), "outputs": outputs}).json()
    assert answer["outputs"][0]["datatype"] == "BYTES"
    logits = ask("POST", _INFER, {"inputs": _inputs()}).json()["outputs"][0]["data"]
    value, index, label = answer["outputs"][0]["data"][0].split(":")
    assert logits.index(max(logits)) == int(index)
    assert float(value) == pytest.approx(max(logits), abs=1e-6)
    assert label == read_bundle(CLASSIFIER).manifest.interface.labels[int(index)]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        (_INFER, b"{", 400, "not valid JSON"),
        (_INFER, {"inputs": []}, 400, "is missing"),
        (_INFER, {"inputs": _inputs(33)}, 400, "takes 1 to 32"),
        (_INFER, {"inputs": _inputs(), "outputs": [{"name": "y"}]}, 400, "no output 'y'"),
        (_INFER, {"inputs": _inputs(), "parameters": {"triton_x": 1}}, 400, "reserved"),
        ("/v2/models/nope/infer", {"inputs": _inputs()}, 404, "no model 'nope'"),
        ("/v2/models/tiny-classifier/versions/9/infer", {"inputs": []}, 404, "no version '9'"),
        ("/v2/models/tiny-classifier/versions/abc/infer", {"inputs": []}, 400, "'abc'"),
        ("/v2/models/tiny-decoder/infer", {"inputs": []}, 501, "decoupled"),
        ("/v2/nothing", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_gets_its_status_and_one_sentence(ask, path, body, status, sentence):
    answer = ask("POST", path, body)
    assert answer.status == status
    assert sentence in answer.json()["error"]


def test_a_body_is_bounded_and_a_packed_one_by_what_it_unpacks_to(ask):
    assert ask("POST", _INFER, bytes(33 << 20)).status == 413
    packed = gzip.compress(bytes(64 << 20))
    assert len(packed) < 1 << 20
    assert ask("POST", _INFER, packed, Content_Encoding="gzip").status == 413
    assert ask("POST", _INFER, b"not packed", Content_Encoding="gzip").status == 400
    assert ask("GET", "/v2/health/live").status == 200


def test_half_sent_bodies_do_not_hide_whether_the_server_lives(server, ask):
    host, port = server.http.split(":")
    head = f"POST {_INFER} HTTP/1.1\r\nHost: {server.http}\r\nContent-Length: 50\r\n\r\nx"
    with contextlib.ExitStack() as held:
        for _ in range(MOST_REQUESTS):
            connection = held.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(head.encode())
        _until(lambda: ask("GET", "/v2").status == 429)
        assert ask("GET", "/v2/health/ready").status == 200
        assert ask("GET", "/v2/health/live").status == 200
        assert ask("GET", "/metrics").status == 200
    _until(lambda: ask("GET", "/v2").status == 200)


def _until(happens):
    until = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_pages_of_web_sites_cannot_use_the_server(ask):
    assert ask("GET", "/v2", Origin="https://example.com").status == 403
    assert ask("GET", "/v2", Host="example.com").status == 403
    assert ask("GET", "/metrics", Host="rebound.example.com:8000").status == 403
    assert ask("GET", "/v2", Host="localhost:1").status == 200


def test_text_is_made_at_once_or_in_events(ask):
    body = {"text_input": "Hello", "parameters": {"max_tokens": 8}}
    whole = ask("POST", "/v2/models/tiny-decoder/generate", body).json()
    assert whole["parameters"]["generated_tokens"] == 8
    assert whole["parameters"]["decode_microseconds"] > 0
    answer = ask("POST", "/v2/models/tiny-decoder/generate_stream", body)
    assert answer.headers["Content-Type"] == "text/event-stream"
    lines = [line for line in answer.body.decode().split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert [e["parameters"]["triton_final_response"] for e in events][-1] is True
    beside = ask(
        "POST", "/v2/models/tiny-decoder/generate", {"text_input": "Hello", "max_tokens": 8}
    )
    assert beside.json()["text_output"] == whole["text_output"]
    wrong = {"text_input": "Hello", "parameters": {"max_tokens": -1}}
    assert ask("POST", "/v2/models/tiny-decoder/generate_stream", wrong).status == 400


def test_models_are_listed_unloaded_and_loaded(ask):
    index = ask("POST", "/v2/repository/index").json()
    assert {entry["state"] for entry in index} == {"READY"}
    assert ask("POST", "/v2/repository/models/tiny-embedder/unload").status == 200
    assert ask("GET", "/v2/models/tiny-embedder/ready").status == 400
    ready = ask("POST", "/v2/repository/index", {"ready": True}).json()
    assert "tiny-embedder" not in {entry["name"] for entry in ready}
    assert ask("POST", "/v2/repository/models/tiny-embedder/load").status == 200
    assert ask("GET", "/v2/models/tiny-embedder/ready").status == 200
    assert ask("POST", "/v2/repository/models/nope/unload").status == 200
    assert ask("POST", "/v2/repository/models/nope/load").status == 500
    load = "/v2/repository/models/tiny-embedder/load"
    assert ask("POST", load, {"parameters": {"config": "{}"}}).status == 400


def test_metrics_and_statistics_agree(ask):
    ask("POST", _INFER, {"inputs": _inputs(3)})
    counted = ask("GET", "/v2/models/tiny-classifier/stats").json()["model_stats"][0]
    page = ask("GET", "/metrics").body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in page if not line.startswith("#"))
    model = '{model="tiny-classifier"}'
    assert float(values[f"outpost_inferences_total{model}"]) == counted["inference_count"]
    assert float(values[f"outpost_executions_total{model}"]) == counted["execution_count"]
    success = 'outpost_requests_total{model="tiny-classifier",outcome="success"}'
    assert float(values[success]) == counted["inference_stats"]["success"]["count"]
