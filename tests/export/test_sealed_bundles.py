"""What the exporter builds gives the very same bits when it is opened from encrypted blocks."""

import numpy as np
import pytest
from outpost_runtime import golden
from outpost_runtime.interface import TextInterface
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.token_table import token_rows, with_table

from tests.support import checkpoints
from tests.support.batches import Batch
from tests.support.building import build_bundle
from tests.support.sealed import sealed

pytestmark = pytest.mark.slow  # torch's exporter takes seconds for the smallest model


@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
def test_quantized_decoders(tmp_path, target):
    source = checkpoints.save_decoder(tmp_path / "source", "gemma3", tie_word_embeddings=True)
    loose = {"thresholds": {"perplexity_increase": 9.0}}
    plain = build_bundle(source, tmp_path / "bundle", target, **loose)
    bundle = sealed(plain.folder, block_bytes=1 << 20)
    assert isinstance(bundle.manifest.interface, TextInterface)
    prompts = np.random.default_rng(1).integers(4, 260, (3, 9))
    table = plain.manifest.interface.token_table
    assert (table is not None) == (target == "cpu-int8")
    one, other = (
        with_table(OrtSession(graph_of(b, "model.onnx")), token_rows(b.contents, table))
        for b in (plain, bundle)
    )
    assert np.array_equal(Batch(one, 3).answer(prompts)[1], Batch(other, 3).answer(prompts)[1])
    for each in (plain, bundle):
        model = open_model(each, ModelSettings(apart=True, text=TextLimits(streams=1)))
        golden.check(model)
        model.close()


def test_quantized_encoders(tmp_path):
    source = checkpoints.save_sentence_encoder(tmp_path / "source")
    plain = build_bundle(source, tmp_path / "bundle", "cpu-int8", thresholds={"cosine": 0.5})
    bundle = sealed(plain.folder, block_bytes=1 << 20)
    vectors = []
    for each in (plain, bundle):
        model = open_model(each)
        feeds = {spec.name: np.ones((2, 7), np.int64) for spec in model.engine.inputs}
        vectors.append(model.engine.submit(feeds).result(20)["sentence_embedding"])
        model.close()
    assert np.array_equal(*vectors)
