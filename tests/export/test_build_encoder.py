"""Encoders, end to end on tiny models, against sentence-transformers and transformers."""

import json

import numpy as np
import pytest
import torch
from outpost_export import encoder_evidence
from outpost_export.blocks import quantize_rows
from outpost_export.errors import ConversionError, EvidenceError, RecipeError, SourceError
from outpost_export.gate import misses
from outpost_export.progress import SilentReporter
from outpost_runtime.opening import ModelSettings, open_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification

from tests.support import checkpoints
from tests.support.building import build_bundle

pytestmark = pytest.mark.slow  # torch's exporter takes seconds for the smallest model

TEXTS = ["a", "The press stops.", "A much longer sentence about oil, valves and pumps. " * 3]


def _embed(bundle, texts):
    model = open_model(bundle, ModelSettings(threads=1))
    (batch,) = model.submit(model.encode(texts))
    (vectors,) = batch.output.result().values()
    model.close()
    return vectors[np.argsort(batch.positions)]


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_vectors_are_those_of_sentence_transformers(encoder, tmp_path, target):
    bundle = build_bundle(encoder, tmp_path / "b", target)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    cosines = (_embed(bundle, TEXTS) * expected).sum(1)
    assert cosines.min() > (0.99999 if target == "cpu-fp32" else 0.99)
    assert bundle.manifest.interface.max_tokens == 64


def test_an_int8_vector_does_not_depend_on_its_neighbours(encoder, tmp_path):
    bundle = build_bundle(encoder, tmp_path / "b", "cpu-int8")
    together, alone = _embed(bundle, TEXTS), _embed(bundle, TEXTS[:1])
    assert together[0] == pytest.approx(alone[0], abs=1e-5)


@pytest.mark.parametrize("mode", ["cls", "max"])
def test_other_poolings_are_part_of_the_bundle(tmp_path, mode):
    source = checkpoints.save_sentence_encoder(tmp_path / "source")
    key = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}[mode]
    (source / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, key: True})
    )
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    assert _embed(build_bundle(source, tmp_path / "b"), TEXTS) == pytest.approx(expected, abs=1e-5)


def test_a_module_that_is_not_known_is_refused(tmp_path):
    source = checkpoints.save_sentence_encoder(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    (source / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SourceError, match="type 'Dense', which is not supported"):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize("tokens", [False, True])
def test_a_classifier_gives_the_labels_of_the_checkpoint(tmp_path, tokens):
    source = checkpoints.save_classifier(tmp_path / "source", tokens=tokens)
    bundle = build_bundle(source, tmp_path / "b")
    assert bundle.manifest.evidence.figures["label_agreement"] == 1
    assert bundle.manifest.interface.labels == ("calm", "alarm", "unknown")
    assert bundle.manifest.task == ("token-classification" if tokens else "text-classification")


def test_a_classifier_reads_two_segments(tmp_path):
    source = checkpoints.save_classifier(tmp_path / "source")
    model = open_model(build_bundle(source, tmp_path / "b"), ModelSettings(threads=1))
    ids = np.array([[1, 10, 20, 30, 2]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids // 20}
    got = model.engine.submit(feeds).result()["logits"]
    model.close()
    torch_model = AutoModelForSequenceClassification.from_pretrained(source)
    expected = torch_model(**{k: torch.tensor(v) for k, v in feeds.items()}).logits
    assert got == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_an_embedding_that_misses_its_cosine_is_refused(encoder, tmp_path):
    with pytest.raises(EvidenceError, match=r"cosine is .*, demanded is at least 1\.5"):
        build_bundle(encoder, tmp_path / "b", thresholds={"cosine": 1.5})


def test_an_empty_evaluation_file_is_refused(encoder, tmp_path):
    (tmp_path / "eval.txt").write_text("\n\n")
    with pytest.raises(RecipeError, match="has no lines"):
        build_bundle(encoder, tmp_path / "b", evaluation=tmp_path / "eval.txt")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("modules.json", "{}", "not a JSON list"),
        ("modules.json", "[1]", "not a list of objects"),
        ("1_Pooling/config.json", "[]", "not a JSON object"),
        ("1_Pooling/config.json", "{}", "asks for"),
        ("sentence_bert_config.json", '{"max_seq_length": -5}', "must be at least 1"),
    ],
)
def test_a_damaged_description_of_the_pooling_is_named(tmp_path, name, content, complaint):
    source = checkpoints.save_sentence_encoder(tmp_path / "source")
    (source / name).write_text(content)
    with pytest.raises(SourceError, match=complaint):
        build_bundle(source, tmp_path / "b")


def test_a_model_that_cannot_read_what_its_bundle_would_promise_is_refused(tmp_path):
    source = checkpoints.save_roberta(tmp_path / "source")
    with pytest.raises(ConversionError, match="cannot read token ids of shape"):
        build_bundle(source, tmp_path / "b")


def test_the_module_that_decides_the_vectors_is_part_of_the_provenance(encoder, tmp_path):
    provenance = build_bundle(encoder, tmp_path / "b").manifest.provenance
    assert "1_Pooling/config.json" in provenance.source
    assert len(provenance.evaluation_sha256) == 64


class Broken:
    """A session that answers NaN behind its first case."""

    def __init__(self, output, shape):
        self.output, self.shape, self.runs = output, shape, 0

    def run(self, feeds):
        self.runs += 1
        rows = len(feeds["input_ids"])
        values = np.ones((rows, self.shape), np.float32)
        return {self.output: values if self.runs == 1 else values * np.nan}


@pytest.mark.parametrize(
    ("output", "threshold"), [("sentence_embedding", "cosine"), ("logits", "label_agreement")]
)
def test_an_answer_that_is_no_number_passes_no_gate(output, threshold):
    feeds = {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.int64)}
    cases = [encoder_evidence.Case(feeds=feeds, expected=np.ones((2, 4), np.float32))] * 3
    figures = encoder_evidence.measure(Broken(output, 4), cases, output, SilentReporter())
    missed = {miss.figure for miss in misses(figures, {threshold: 0.99, "max_difference": 1e9})}
    assert missed == {threshold, "max_difference"}


def test_quantized_rows_are_within_half_a_step():
    weights = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    weights[3] = 0
    blocks = quantize_rows(weights, 32)
    steps = np.repeat(blocks.scales, 32, axis=1)
    restored = (blocks.values.astype(np.float32) - 128) * steps
    assert (np.abs(restored - weights) <= steps / 2 + 1e-7).all()
