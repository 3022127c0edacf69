"""One contract for every session, and the decoder on top of it."""

import numpy as np
import pytest
from outpost_runtime.errors import BundleError, ExecutionError, InvalidInputError
from outpost_runtime.sessions.bound_memory import BoundMemory
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.sessions.process import ProcessSession
from outpost_runtime.text.decoder import Decoder

from tests.support.fixtures import CLASSIFIER, DECODER
from tests.support.toy import ToySession

GRAPH = DECODER / "model.onnx"
SESSIONS = {
    "toy": lambda _: ToySession(),
    "ort": lambda _: OrtSession(GRAPH, threads=1),
    "process": lambda memory: ProcessSession(GRAPH, threads=1, memory=memory),
}


@pytest.fixture
def memory():
    return BoundMemory()


@pytest.fixture(params=SESSIONS)
def session(request, memory):
    session = SESSIONS[request.param](memory)
    yield session
    session.close()


def _feeds(session, tokens):
    feeds = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    feeds["num_logits_to_keep"] = np.ones(1, np.int64)
    for spec in session.inputs:
        if spec.name.startswith("past_key_values."):
            feeds[spec.name] = np.zeros((1, spec.shape[1], 0, spec.shape[3]), spec.dtype)
    return feeds


def test_a_bound_run_gives_what_a_free_run_gives(session, memory):
    tokens = list(range(5, 45))
    free = session.run(_feeds(session, tokens))["logits"][0, 0]
    bound = Decoder(session, rows=2, max_length=64, allocate=memory.zeros).prefill(1, tokens, 0)[0]
    assert bound == pytest.approx(free, abs=1e-5)


def test_chunks_and_single_tokens_give_what_one_run_gives(session, memory):
    decoder = Decoder(session, rows=1, max_length=64, allocate=memory.zeros)
    tokens = np.arange(5, 45)
    whole = decoder.prefill(0, tokens, 0)[0].copy()
    decoder.prefill(0, tokens[:17], 0)
    chunked = decoder.prefill(0, tokens[17:], 17)[0].copy()
    decoder.prefill(0, tokens[:30], 0)
    for position in range(30, 40):
        single = decoder.decode([int(tokens[position])], [position])[0].copy()
    assert chunked == pytest.approx(whole, abs=1e-5)
    assert single == pytest.approx(whole, abs=1e-5)


def test_rows_of_a_batch_do_not_see_each_other(session, memory):
    decoder = Decoder(session, rows=2, max_length=64, allocate=memory.zeros)
    first, second = np.arange(5, 25), np.arange(30, 37)
    alone = [decoder.prefill(0, tokens, 0)[0].copy() for tokens in (first, second)]
    decoder.prefill(0, first[:-1], 0)
    decoder.prefill(1, second[:-1], 0)
    together = decoder.decode([int(first[-1]), int(second[-1])], [19, 6])
    assert together[0] == pytest.approx(alone[0], abs=1e-5)
    assert together[1] == pytest.approx(alone[1], abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda feeds: feeds.pop("input_ids"),
        lambda feeds: feeds.update(surprise=np.zeros(1)),
        lambda feeds: feeds.update(input_ids=np.zeros((1, 3), np.int32)),
        lambda feeds: feeds.update(input_ids=np.zeros(3, np.int64)),
    ],
)
def test_wrong_feeds_are_refused_by_name(session, change):
    feeds = _feeds(session, [5, 6, 7])
    change(feeds)
    with pytest.raises(InvalidInputError, match=r"input_ids|surprise"):
        session.run(feeds)


def test_a_file_that_is_no_model_is_a_bundle_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"cannot open model\.onnx"):
        OrtSession(path)


def test_a_model_that_is_no_decoder_is_refused():
    with pytest.raises(BundleError, match="not a decoder"):
        Decoder(OrtSession(CLASSIFIER / "model.onnx"), rows=1, max_length=8)


def test_a_token_that_does_not_exist_is_an_invalid_input_and_no_page_of_text():
    session = OrtSession(CLASSIFIER / "model.onnx", threads=1)
    feeds = {spec.name: np.full((1, 4), 10**6, np.int64) for spec in session.inputs}
    with pytest.raises(InvalidInputError, match="The model refuses its input: indices") as caught:
        session.run(feeds)
    assert len(str(caught.value)) < 200


def test_a_failure_inside_the_provider_is_an_execution_error():
    session = OrtSession(CLASSIFIER / "model.onnx", threads=1)
    feeds = {spec.name: np.ones((1, 500), np.int64) for spec in session.inputs}
    with pytest.raises(ExecutionError, match="ONNX Runtime failed"):
        session.run(feeds)
