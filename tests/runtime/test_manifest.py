import json

import pytest
from outpost_runtime.errors import BundleError
from outpost_runtime.manifest import encode_manifest, parse_manifest

from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER


@pytest.mark.parametrize("folder", [DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS])
def test_a_manifest_survives_reading_and_writing_byte_for_byte(folder):
    data = (folder / "manifest.json").read_bytes()
    assert encode_manifest(parse_manifest(data)) == data


def _changed(path, value, folder=DECODER):
    document = json.loads((folder / "manifest.json").read_bytes())
    *parents, last = path
    table = document
    for key in parents:
        table = table[key]
    table[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["format"], "outpost-bundle/9", "this build reads 'outpost-bundle/1'"),
        (["name"], "../../etc", "manifest.json:name must be"),
        (["surprise"], 1, "unknown keys: surprise"),
        (["interface", "kind"], "telepathy", "this build knows text, embeddings, tensors"),
        (["interface", "context_length"], 0, "must be at least 1"),
        (["interface", "model"], "other.onnx", "does not list 'other.onnx'"),
        (["interface", "adapters", "rank"], 0, "adapters.rank must be at least 1"),
        (["interface", "adapters", "linears", "x"], {"inputs": 1}, "x.outputs is missing"),
        (["interface", "adapters", "model"], "other.onnx", "does not list 'other.onnx'"),
        (["interface", "adapters", "surprise"], 1, "unknown keys: surprise"),
        (["files", "../evil"], {"size": 1, "sha256": "0" * 64}, "not an allowed file name"),
        (["files", "/etc/passwd"], {"size": 1, "sha256": "0" * 64}, "not an allowed file name"),
        (["files", "manifest.json"], {"size": 1, "sha256": "0" * 64}, "not an allowed file name"),
        (["files", "model.onnx"], {"size": 1, "sha256": "beef"}, "64 hexadecimal digits"),
        (["files", "model.onnx"], {"size": -1, "sha256": "0" * 64}, "must not be negative"),
        (["evidence", "figures"], {"perplexity": "good"}, "figures.perplexity must be a number"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_place_named(path, value, complaint):
    with pytest.raises(BundleError, match=complaint.replace("'", ".")):
        parse_manifest(_changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["interface", "base"], "beef", "base must be 64 hexadecimal digits"),
        (["interface", "rank"], 0, "must be at least 1"),
        (["interface", "weights"], "other.safetensors", "does not list 'other.safetensors'"),
        (["interface", "end_tokens"], ["x"], "must be an integer"),
        (["interface", "tokenizer"], "tokenizer.json", "unknown keys: tokenizer"),
    ],
)
def test_a_wrong_manifest_of_an_adapter_is_refused(path, value, complaint):
    with pytest.raises(BundleError, match=complaint.replace("'", ".")):
        parse_manifest(_changed(path, value, ADAPTERS[0]))


def test_a_manifest_from_before_there_were_adapters_is_still_read():
    document = json.loads((DECODER / "manifest.json").read_bytes())
    del document["interface"]["adapters"]
    assert parse_manifest(json.dumps(document).encode()).interface.adapters is None
