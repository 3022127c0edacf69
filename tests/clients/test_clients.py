"""Clients that factories and car makers have already: they work unmodified."""

import pytest

pytestmark = pytest.mark.clients


def test_tritonclient_over_grpc(run):
    found = run("triton_grpc.py")
    assert found.pop("likeliest") == found["classes"][1]
    assert found == {
        "live": True,
        "ready": True,
        "models": [True, False],
        "versions": [True, False],
        "bad version": "StatusCode.INVALID_ARGUMENT",
        "server": "outpost",
        "decoupled": True,
        "id": "7",
        "version": "1",
        "shape": [3, 3],
        "gzip": True,
        "deflate": True,
        "classes": [[3, 2], found["classes"][1]],
        "unknown model": "StatusCode.NOT_FOUND",
        "unknown output": "StatusCode.INVALID_ARGUMENT",
        "too many rows": "StatusCode.INVALID_ARGUMENT",
        "deadline": "StatusCode.DEADLINE_EXCEEDED",
        "unary text": "StatusCode.UNIMPLEMENTED",
        "counted": 12,
        "trace": "StatusCode.UNIMPLEMENTED",
        "cuda": "StatusCode.UNIMPLEMENTED",
        "log": "StatusCode.UNIMPLEMENTED",
        "regions": ["in", "out"],
        "through memory": True,
        "forgotten": "StatusCode.NOT_FOUND",
        "final": [0, 6],
        "bad in a stream": True,
        "after it": ["tensor", True],
        "at once": True,
        "same text": True,
        "index": [
            "tiny-adapter-one",
            "tiny-adapter-two",
            "tiny-classifier",
            "tiny-decoder",
            "tiny-embedder",
        ],
        "unloaded": [False, True],
        "gone": "StatusCode.NOT_FOUND",
        "loaded": True,
        "missing": "StatusCode.INTERNAL",
        "asyncio": [20, True],
    }


def test_tritonclient_over_http(run):
    found = run("triton_http.py")
    for key in [key for key in found if key.startswith("binary")]:
        assert found.pop(key) is True, key
    assert found == {
        "live": True,
        "ready": True,
        "models": [True, False],
        "server": "outpost",
        "batch": 32,
        "id": "7",
        "gzip": True,
        "deflate": True,
        "classes": [3, 1],
        "unknown": "404",
        "async": True,
        "statistics": "tiny-classifier",
        "index": 5,
        "region": True,
        "through memory": True,
        "asyncio": True,
    }


def test_kserves_grpc_client(run):
    assert run("kserve_grpc.py") == {
        "live": True,
        "ready": True,
        "model": True,
        "other": False,
        "id": "7",
        "shape": [3, 3],
        "typed": True,
    }


def test_kserves_rest_client(run):
    assert run("kserve_rest.py") == {
        "live": True,
        "ready": True,
        "model": True,
        "id": "7",
        "shape": [3, 3],
    }


def test_the_stubs_of_open_inference_grpc(run):
    assert run("open_inference_stubs.py") == {
        "id": "7",
        "shape": [1, 3],
        "bytes": 12,
        "ready": True,
    }
