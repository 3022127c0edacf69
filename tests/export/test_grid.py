"""Builds on the grid of a predecessor: the same scales and places, few other integers."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from outpost_export.cli import main as export
from outpost_export.errors import EvidenceError, RecipeError
from outpost_export.grid import layout_of
from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError
from outpost_runtime.manifest import encode_manifest, parse_manifest
from safetensors.numpy import load_file

from tests.support import checkpoints
from tests.support.building import build_bundle
from tests.support.fixtures import ADAPTERS

_LOOSE = {"thresholds": {"perplexity_increase": 9.0}}
_TRAINED = "model.layers.1.mlp.up_proj.weight"
_TIED = {"tie_word_embeddings": True}
_KINDS = {
    "columns, tied head": ("gemma3", _TIED, {"target": "cpu-int8"}),
    "columns": ("llama", {}, {"target": "cpu-int8"}),
    "8 bits in blocks": ("gemma3", _TIED, {"target": "cpu-int8", "scales": "blocks"}),
    "screened head": (
        "gemma3",
        _TIED,
        {"target": "cpu-int8", "scales": "blocks", "head": "screened"},
    ),
    "4 bits": ("llama", _TIED, {"target": "cpu-int4"}),
}
_SLOW = ("columns", "8 bits in blocks", "screened head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A checkpoint's bundle, and that of a tuned one on its grid."""

    recipe: dict
    source: Path
    old: Bundle
    new: Bundle

    def build(self, source, out, **changes):
        return build_bundle(source, out, on_grid_of=self.old.folder, **(self.recipe | changes))


def _pair(folder, kind):
    architecture, changes, recipe = _KINDS[kind]
    source = checkpoints.save_decoder(folder / "source", architecture, **changes)
    recipe = recipe | _LOOSE
    old = build_bundle(source, folder / "old", **recipe)
    tuned = checkpoints.save_tuned(source, folder / "tuned", _TRAINED)
    new = build_bundle(tuned, folder / "new", on_grid_of=old.folder, **recipe)
    return Pair(recipe=recipe, source=source, old=old, new=new)


def _tensors(bundle):
    model = onnx.load(bundle.path("model.onnx"))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _changed(new, old, name):
    if not name.endswith("_Q4"):
        return int(np.count_nonzero(new != old))
    halves = new ^ old
    return int(np.count_nonzero(halves & 15) + np.count_nonzero(halves >> 4))


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k in _SLOW)) for k in _KINDS],
)
def pair(request, tmp_path_factory):
    return _pair(tmp_path_factory.mktemp("pair"), request.param)


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory):
    return _pair(tmp_path_factory.mktemp("pair"), "4 bits")


def test_scales_are_the_predecessors_and_tensors_lie_where_they_did(pair):
    old, new = _tensors(pair.old), _tensors(pair.new)
    scales = [name for name in old if name.endswith(("scales", "_factors", "/zeros", "/usual"))]
    assert len(scales) >= 11
    for name in scales:
        np.testing.assert_array_equal(old[name], new[name], err_msg=name)
    assert layout_of(pair.old.path("model.onnx")) == layout_of(pair.new.path("model.onnx"))
    assert pair.old.manifest.files["model.onnx"] == pair.new.manifest.files["model.onnx"]


def test_what_was_not_trained_is_equal_bit_by_bit_and_what_was_is_close(pair):
    old, new = _tensors(pair.old), _tensors(pair.new)
    (name,) = [name for name in old if (old[name] != new[name]).any()]
    assert "layers.1.mlp.up_proj" in name
    figures = pair.new.manifest.evidence.figures
    assert figures["changed_weights"] == _changed(new[name], old[name], name) > 0
    if not name.endswith("_Q4"):
        assert np.abs(new[name].astype(int) - old[name]).max() < 30  # of 127 for the largest weight


def test_a_checkpoint_on_its_own_grid_is_the_same_file(pair, tmp_path):
    same = pair.build(pair.source, tmp_path / "same")
    for name in ("model.onnx", "model.onnx.data"):
        assert same.manifest.files[name] == pair.old.manifest.files[name]
    figures = same.manifest.evidence.figures
    assert (figures["changed_weights"], figures["clipped_weights"]) == (0, 0)


def test_the_manifest_names_the_predecessor_and_that_of_a_fresh_build_does_not(pair):
    assert pair.new.manifest.provenance.grid_of == pair.old.digest
    assert b"grid_of" not in pair.old.manifest_bytes
    assert parse_manifest(encode_manifest(pair.new.manifest)) == pair.new.manifest
    damaged = pair.new.manifest_bytes.replace(pair.old.digest.encode(), b"press-line")
    with pytest.raises(BundleError, match="grid_of must be 64 hexadecimal digits"):
        parse_manifest(damaged)


def test_weights_beyond_the_frozen_scales_are_clipped_and_counted(four_bits, tmp_path):
    far = checkpoints.save_tuned(four_bits.source, tmp_path / "far", _TRAINED, size=3)
    bundle = four_bits.build(far, tmp_path / "b")
    figures = bundle.manifest.evidence.figures
    # Of 64 · 96 weights with three times their spread on top, most leave a range of two or three.
    assert 64 * 96 / 10 < figures["clipped_weights"] < 64 * 96
    assert four_bits.new.manifest.evidence.figures["clipped_weights"] < 64 * 96 / 10
    old, new = _tensors(four_bits.old), _tensors(bundle)
    name = next(name for name in old if "layers.1.mlp.up_proj" in name and name.endswith("_Q4"))
    np.testing.assert_array_equal(*(t[name.replace("_Q4", "_scales")] for t in (old, new)))


def test_a_build_that_is_worse_on_the_grid_is_told_of_a_fresh_one(four_bits, tmp_path):
    far = checkpoints.save_tuned(four_bits.source, tmp_path / "far", _TRAINED, size=3)
    with pytest.raises(EvidenceError, match="perplexity_increase") as caught:
        four_bits.build(far, tmp_path / "b", thresholds={"perplexity_increase": -1.0})
    assert "fresh grid, without --on-grid-of" in caught.value.hint
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target": "cpu-fp32"}, "has no grid"),
        ({"target": "cpu-int8"}, "target of 'old' is cpu-int4, and of this build cpu-int8"),
        ({"block_size": 16}, "block_size of 'old' is 32, and of this build 16"),
        ({"context_length": 128}, "context_length of 'old' is 2048, and of this build 128"),
    ],
)
def test_another_recipe_than_the_predecessors_is_refused(four_bits, tmp_path, changes, complaint):
    with pytest.raises(RecipeError, match=complaint):
        four_bits.build(four_bits.source, tmp_path / "b", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": 160},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"vocab_size": 300},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
    ],
)
def test_another_architecture_is_refused_and_leaves_nothing(four_bits, tmp_path, changes):
    other = checkpoints.save_decoder(tmp_path / "other", **(_TIED | changes))
    with pytest.raises(RecipeError, match="cannot be built on the grid of 'old'") as caught:
        four_bits.build(other, tmp_path / "b")
    assert "Leave --on-grid-of out" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_a_damaged_predecessor_is_refused(four_bits, tmp_path):
    folder = shutil.copytree(four_bits.old.folder, tmp_path / "damaged")
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError):
        build_bundle(four_bits.source, tmp_path / "b", on_grid_of=folder, **four_bits.recipe)


def test_an_adapter_has_no_grid(four_bits, tmp_path):
    with pytest.raises(RecipeError, match="it cannot be built on that grid"):
        build_bundle(four_bits.source, tmp_path / "b", on_grid_of=ADAPTERS[0], **four_bits.recipe)


def test_the_option_of_the_command_builds_on_the_grid(four_bits, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[thresholds]\nperplexity_increase = 9.0\n")
    options = ["--target", "cpu-int4", "--recipe", str(recipe), "--out", str(tmp_path / "b")]
    grid = ["--on-grid-of", str(four_bits.old.folder)]
    assert export(["build", str(four_bits.source), *options, *grid]) == 0
    assert "on its predecessor's grid: 0.00% of the integers changed" in capsys.readouterr().out
    assert export(["inspect", "--json", str(tmp_path / "b")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["provenance"]["grid_of"] == four_bits.old.digest


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
@pytest.mark.parametrize("kind", ["embedding", "classifier"])
def test_an_encoder_keeps_what_was_not_trained(kind, target, tmp_path):
    save = {
        "embedding": checkpoints.save_sentence_encoder,
        "classifier": checkpoints.save_classifier,
    }
    loose = {"embedding": {"cosine": 0.1}, "classifier": {"label_agreement": 0.0}}
    source = save[kind](tmp_path / "source")
    name = next(n for n in load_file(source / "model.safetensors") if "1.output.dense.weight" in n)
    recipe = {"target": target, "thresholds": loose[kind]}
    old = build_bundle(source, tmp_path / "old", **recipe)
    same = build_bundle(source, tmp_path / "same", on_grid_of=old.folder, **recipe)
    assert same.manifest.files["model.onnx.data"] == old.manifest.files["model.onnx.data"]
    new = build_bundle(
        checkpoints.save_tuned(source, tmp_path / "tuned", name),
        tmp_path / "new",
        on_grid_of=old.folder,
        **recipe,
    )
    before, after = _tensors(old), _tensors(new)
    differing = [name for name in before if (before[name] != after[name]).any()]
    assert len(differing) == 1
    assert differing[0].endswith(f"_Q{target[-1]}")
    assert layout_of(old.path("model.onnx")) == layout_of(new.path("model.onnx"))
