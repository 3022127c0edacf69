"""ONNX files, end to end: what is built answers as the file does, and what must not is refused."""

import dataclasses
import os

import ml_dtypes
import numpy as np
import onnx
import pytest
from outpost_export.cli import main as export
from outpost_export.errors import ConversionError, EvidenceError, RecipeError, SourceError
from outpost_export.inspect import summary
from outpost_export.result import Finished
from outpost_runtime import golden, golden_file
from outpost_runtime.bundle import describe_file, read_bundle, verify, write_manifest
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import StateSpec
from outpost_runtime.opening import open_model
from outpost_runtime.sessions.ort import OrtSession
from rich.console import Console

from tests.support import onnx_models
from tests.support.building import build_bundle

STATE = (StateSpec(input="state", output="stateN"),)


def _golden(bundle):
    return golden_file.load(bundle.path(bundle.manifest.evidence.golden))


def _said(capsys, *arguments):
    assert export(["build", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_bundle_answers_as_the_file_it_was_made_of(tmp_path):
    source = onnx_models.mlp(tmp_path / "mlp.onnx")
    bundle = build_bundle(source, tmp_path / "b")
    verify(bundle)
    feeds = {"x": np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)}
    answers = [
        OrtSession(path, threads=1).run(feeds)["y"] for path in (source, bundle.path("model.onnx"))
    ]
    assert (answers[0] == answers[1]).all()
    manifest = bundle.manifest
    assert (manifest.task, manifest.target, manifest.licence) == (
        "tensor-inference",
        "cpu-fp32",
        "unknown",
    )
    assert set(manifest.provenance.source) == {"mlp.onnx"}
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "golden.safetensors"}
    assert [str(spec) for spec in manifest.interface.inputs] == ["x: FP32 [any, 6]"]


def test_the_figures_say_that_every_answer_could_be_reproduced(tmp_path):
    evidence = build_bundle(onnx_models.mlp(tmp_path / "m.onnx"), tmp_path / "b").manifest.evidence
    names = "max_difference", "relative_difference", "repeat_difference", "batch_difference"
    assert [evidence.figures[name] for name in names] == pytest.approx([0] * 4, abs=1e-5)
    assert evidence.figures["evaluated_inputs"] == 3
    assert evidence.thresholds == {"relative_difference": 1e-3, "repeat_difference": 1e-6}
    assert evidence.tolerances == {"relative_difference": 1e-3}


def test_the_same_source_and_recipe_give_the_same_digest(tmp_path):
    source = onnx_models.mlp(tmp_path / "mlp.onnx")
    first, second = (build_bundle(source, tmp_path / n, name="same") for n in "ab")
    assert first.digest == second.digest
    assert build_bundle(source, tmp_path / "c", name="same", max_batch=7).digest != first.digest


def test_rows_that_do_not_see_each_other_may_share_runs(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx")
    assert build_bundle(source, tmp_path / "a").manifest.interface.max_batch == 32
    assert build_bundle(source, tmp_path / "b", max_batch=5).manifest.interface.max_batch == 5
    assert build_bundle(source, tmp_path / "c", max_batch=0).manifest.interface.max_batch == 0


def test_rows_that_see_each_other_do_not_and_the_figure_says_by_how_much(tmp_path):
    manifest = build_bundle(onnx_models.centred(tmp_path / "c.onnx"), tmp_path / "b").manifest
    assert manifest.interface.max_batch == 0
    assert manifest.evidence.figures["batch_difference"] > 0.1


def test_a_fixed_first_dimension_is_no_batch(tmp_path, capsys):
    source = onnx_models.mlp(tmp_path / "m.onnx", batch=1)
    assert export(["build", str(source), "--target", "cpu-fp32", "--out", str(tmp_path / "b")]) == 0
    assert read_bundle(tmp_path / "b").manifest.interface.max_batch == 0
    assert "do not share runs: the first dimension of 'x' is not free" in " ".join(
        capsys.readouterr().out.split()
    )


def test_texts_go_in_and_come_out_as_bytes(tmp_path):
    bundle = build_bundle(onnx_models.lower_case(tmp_path / "l.onnx"), tmp_path / "b")
    assert bundle.manifest.interface.inputs[0].datatype == "BYTES"
    tensors = _golden(bundle)
    assert all(type(text) is bytes for text in tensors["0/inputs/text"])
    np.savez(tmp_path / "g.npz", **{"0/text": np.array(["OIL", "Öl"])})
    given = build_bundle(
        onnx_models.lower_case(tmp_path / "l.onnx"), tmp_path / "c", golden=tmp_path / "g.npz"
    )
    assert _golden(given)["0/outputs/lower"][0] == b"oil"


def test_bfloat16_goes_in_and_comes_out(tmp_path):
    types = {"x": onnx_models.BFLOAT16, "y": onnx_models.BFLOAT16}
    source = onnx_models.one_node(tmp_path / "m.onnx", "Identity", "x", "y", **types)
    tensors = _golden(build_bundle(source, tmp_path / "b"))
    assert tensors["0/outputs/y"].dtype == ml_dtypes.bfloat16
    assert tensors["0/outputs/y"].tolist() == tensors["0/inputs/x"].tolist()


def test_truth_values_are_compared_too(tmp_path):
    types = {"x": onnx_models.BOOL, "y": onnx_models.BOOL}
    source = onnx_models.one_node(tmp_path / "m.onnx", "Not", "x", "y", **types)
    assert build_bundle(source, tmp_path / "b").manifest.evidence.figures["max_difference"] == 0


@pytest.mark.parametrize("batch", [1, None, "batch"])
def test_a_state_is_carried_from_zeros_through_three_steps(tmp_path, batch):
    source = onnx_models.counter(tmp_path / "m.onnx", batch=batch)
    bundle = build_bundle(source, tmp_path / "b", states=STATE)
    assert bundle.manifest.interface.states == STATE
    assert bundle.manifest.interface.max_batch == 0
    tensors = _golden(bundle)
    assert not tensors["0/inputs/state"].any()
    for step in "12":
        before = str(int(step) - 1)
        carried = tensors[f"{before}/outputs/stateN"]
        assert (tensors[f"{step}/inputs/state"] == carried).all()
    assert tensors["2/outputs/y"] == pytest.approx(
        2 * sum(tensors[f"{step}/inputs/x"] for step in "012"), rel=1e-6
    )


def test_steps_that_a_user_brings_are_one_sequence(tmp_path):
    source = onnx_models.counter(tmp_path / "m.onnx", batch="n")
    tensors = {f"{step}/x": np.float32([[step, 1]]) for step in range(3)}
    tensors["3/x"] = np.ones((2, 2), np.float32)  # other rows begin another one
    np.savez(tmp_path / "g.npz", **tensors)
    bundle = build_bundle(source, tmp_path / "b", states=STATE, golden=tmp_path / "g.npz")
    states = [_golden(bundle)[f"{step}/inputs/state"].tolist() for step in range(4)]
    assert states == [[[0, 0]], [[0, 1]], [[1, 2]], [[0, 0], [0, 0]]]


def test_states_are_made_by_running_and_not_brought(tmp_path):
    tensors = {"0/x": np.ones((1, 2), np.float32), "0/state": np.ones((1, 2), np.float32)}
    np.savez(tmp_path / "g.npz", **tensors)
    source = onnx_models.counter(tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="no input 'state'; its inputs are x"):
        build_bundle(source, tmp_path / "b", states=STATE, golden=tmp_path / "g.npz")


def test_a_model_of_states_alone_is_refused(tmp_path):
    sides = [("state", onnx_models.FLOAT, [2])], [("stateN", onnx_models.FLOAT, [2])]
    source = onnx_models.save(tmp_path / "m.onnx", [("Identity", "state", "stateN")], *sides)
    with pytest.raises(RecipeError, match="an input and an output that are no states"):
        build_bundle(source, tmp_path / "b", states=STATE)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (("surprise", "stateN"), "'surprise', which is no input"),
        (("state", "surprise"), "'surprise', which is no output"),
        (("flag", "stateN"), "cannot be carried into"),
        (("wide", "stateN"), "cannot be carried into"),
    ],
)
def test_a_state_that_the_model_cannot_carry_is_refused(tmp_path, state, complaint):
    inputs = [("state", 1, [1, 2]), ("flag", onnx_models.BOOL, [1, 2]), ("wide", 1, [1, 3])]
    nodes = [("Identity", "state", "stateN"), ("Identity", "flag", "f"), ("Identity", "wide", "w")]
    outputs = [("stateN", 1, [1, 2]), ("f", onnx_models.BOOL, [1, 2]), ("w", 1, [1, 3])]
    source = onnx_models.save(tmp_path / "m.onnx", nodes, inputs, outputs)
    states = (StateSpec(input=state[0], output=state[1]),)
    with pytest.raises(RecipeError, match=complaint):
        build_bundle(source, tmp_path / "b", states=states)


def _picky(path, size, name="width"):
    """Answers only inputs whose second dimension is a multiple of a size."""
    nodes = [("Reshape", "x shape", "y")]
    return onnx_models.save(
        path,
        nodes,
        [("x", onnx_models.FLOAT, [1, name])],
        [("y", onnx_models.FLOAT, [None, size])],
        [("shape", np.array([-1, size], np.int64))],
    )


def test_sizes_are_tried_until_the_model_answers(tmp_path):
    tensors = _golden(build_bundle(_picky(tmp_path / "m.onnx", 64), tmp_path / "b"))
    assert tensors["0/inputs/x"].shape[1] % 64 == 0


def test_a_recipe_gives_sizes_that_nobody_would_guess(tmp_path):
    source = _picky(tmp_path / "m.onnx", 997)
    with pytest.raises(ConversionError, match="No inputs could be made up") as caught:
        build_bundle(source, tmp_path / "b")
    assert "--golden FILE" in caught.value.hint
    bundle = build_bundle(source, tmp_path / "b", dimensions={"width": 997})
    assert _golden(bundle)["0/inputs/x"].shape == (1, 997)


def test_a_size_for_a_dimension_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="'height', which is no free dimension") as caught:
        build_bundle(_picky(tmp_path / "m.onnx", 8), tmp_path / "b", dimensions={"height": 8})
    assert caught.value.hint == "Those with a name: width."


def test_made_up_indices_masks_and_lengths_are_small(tmp_path):
    nodes = [("Gather", "table x", "y")]
    table = ("table", np.float32([[0, 1], [2, 3]]))
    source = onnx_models.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", onnx_models.INT64, ["n", "m"])],
        [("y", onnx_models.FLOAT, ["n", "m", 2])],
        [table],
    )
    tensors = _golden(build_bundle(source, tmp_path / "b"))
    assert {*tensors["1/inputs/x"].ravel().tolist()} == {0, 1}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_golden_inputs_that_a_user_brings_are_those_of_the_bundle(tmp_path, suffix):
    arrays = {"first/x": np.ones((2, 6), np.float32), "second/x": np.eye(6, dtype=np.float32)}
    path = tmp_path / f"golden.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        golden_file.save(path, arrays)
    bundle = build_bundle(onnx_models.mlp(tmp_path / "m.onnx"), tmp_path / "b", golden=path)
    assert (_golden(bundle)["1/inputs/x"] == arrays["second/x"]).all()
    assert bundle.manifest.evidence.figures["evaluated_inputs"] == 2


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "has 0 cases"),
        ({"x": np.ones(3)}, "a tensor named 'x'"),
        ({"0/x": np.ones((2, 6))}, r"Case '0' of .*Input 'x' is FP64"),
        ({"0/x": np.ones((2, 5), np.float32)}, "the model expects x: FP32"),
        ({"0/y": np.ones((2, 6), np.float32)}, "no input 'y'"),
        ({"../x": np.ones((2, 6), np.float32)}, "a tensor named"),
        ({"0/x": np.array([object()])}, "cannot be read"),
        ({"0/x": np.ones((40, 6), np.float32)}, "have 40 rows; max_batch is 32"),
    ],
)
def test_golden_inputs_that_do_not_fit_are_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(RecipeError, match=complaint):
        build_bundle(
            onnx_models.mlp(tmp_path / "m.onnx"), tmp_path / "b", golden=tmp_path / "golden.npz"
        )


@pytest.mark.parametrize("name", ["golden.npz", "golden.safetensors", "golden.txt", "missing.npz"])
def test_a_golden_file_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "golden.npz").write_text("no archive")
    (tmp_path / "golden.safetensors").write_text("no tensors")
    source = onnx_models.mlp(tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match=r"cannot be read|is no \.npz or \.safetensors file"):
        build_bundle(source, tmp_path / "b", golden=tmp_path / name)


def test_answers_that_are_no_numbers_are_refused_with_a_way_out(tmp_path):
    source = onnx_models.one_node(tmp_path / "m.onnx", "Log", "x", "y")
    with pytest.raises(
        EvidenceError, match="output 'y' has values that are no finite numbers"
    ) as e:
        build_bundle(source, tmp_path / "b")
    assert "--golden FILE" in e.value.hint
    assert not (tmp_path / "b").exists()
    np.savez(tmp_path / "g.npz", **{"0/x": np.float32([[1, 2]])})
    build_bundle(source, tmp_path / "b", golden=tmp_path / "g.npz")


def test_a_model_that_draws_random_numbers_is_refused(tmp_path):
    source = onnx_models.one_node(tmp_path / "m.onnx", "RandomNormalLike", "x", "y")
    with pytest.raises(EvidenceError, match="repeat_difference is") as caught:
        build_bundle(source, tmp_path / "b")
    assert "draw random numbers" in caught.value.hint


def test_weights_beside_the_model_are_taken_along(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx", external="weights/part.bin")
    bundle = build_bundle(source, tmp_path / "b")
    assert set(bundle.manifest.provenance.source) == {"m.onnx", "weights/part.bin"}
    assert "model.onnx.data" in bundle.manifest.files


def _with_weights_at(path, location):
    onnx_models.mlp(path, external="w.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../w.bin", "a/../../w.bin", "", "..\\w.bin"]
)
def test_weights_outside_of_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(b"secret" * 1000)
    source = _with_weights_at(tmp_path / "in" / "m.onnx", location)
    with pytest.raises(SourceError, match="outside of its folder"):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize("whole_folder", [False, True])
def test_weights_behind_a_link_out_of_the_folder_are_refused(tmp_path, whole_folder):
    source = _with_weights_at(tmp_path / "in" / "m.onnx", "deep/w.bin")
    outside = tmp_path / "outside"
    outside.mkdir()
    (source.parent / "w.bin").rename(outside / "w.bin")
    deep = source.parent / "deep"
    if whole_folder:
        deep.symlink_to(outside)
    else:
        deep.mkdir()
        (deep / "w.bin").symlink_to(outside / "w.bin")
    with pytest.raises(SourceError, match="a link out of its folder"):
        build_bundle(source, tmp_path / "b")


def test_weights_outside_are_found_inside_of_branches_too(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx")
    model = onnx.load(source)
    branch = onnx.helper.make_graph([], "branch", [], [], [model.graph.initializer[0]])
    onnx.external_data_helper.set_external_data(branch.initializer[0], "/etc/hostname")
    condition = onnx.helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(condition)
    source.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="outside of its folder"):
        build_bundle(source, tmp_path / "b")


def test_weights_that_are_missing_are_named(tmp_path):
    source = _with_weights_at(tmp_path / "m.onnx", "lost.bin")
    with pytest.raises(SourceError, match=r"'lost\.bin', and there is no such file"):
        build_bundle(source, tmp_path / "b")


def test_weights_that_are_cut_off_are_refused(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx", external="w.bin")
    os.truncate(tmp_path / "w.bin", 100)
    with pytest.raises(SourceError, match="not a valid ONNX model"):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize("keep", [0, 1, 300])
def test_a_file_that_is_cut_off_is_refused(tmp_path, keep):
    source = onnx_models.mlp(tmp_path / "m.onnx")
    os.truncate(source, keep)
    with pytest.raises(SourceError, match=r"not (an|a valid) ONNX model"):
        build_bundle(source, tmp_path / "b")


@pytest.mark.parametrize("text", ["hello", "version: 1\n" * 50, "\n"])
def test_a_text_with_the_name_of_a_model_is_refused(tmp_path, text):
    (tmp_path / "m.onnx").write_text(text)
    with pytest.raises(SourceError, match=r"not (an|a valid) ONNX model"):
        build_bundle(tmp_path / "m.onnx", tmp_path / "b")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for name in ("missing.onnx", "folder.onnx"):
        with pytest.raises(SourceError, match="is not a file"):
            build_bundle(tmp_path / name, tmp_path / "b")


def test_a_file_that_is_larger_than_protobuf_can_hold_is_not_read(tmp_path):
    os.truncate(os.open(tmp_path / "m.onnx", os.O_CREAT | os.O_RDWR), 1 << 31)
    with pytest.raises(SourceError, match="larger than the 2 GiB"):
        build_bundle(tmp_path / "m.onnx", tmp_path / "b")


def test_operators_that_nobody_knows_are_named(tmp_path):
    source = onnx_models.one_node(tmp_path / "a.onnx", "Telepathy", "x", "y")
    with pytest.raises(SourceError, match="Telepathy"):
        build_bundle(source, tmp_path / "b")
    source = onnx_models.one_node(tmp_path / "b.onnx", "com.acme::Telepathy", "x", "y")
    with pytest.raises(ConversionError, match=r"com\.acme:Telepathy.* is not a registered") as e:
        build_bundle(source, tmp_path / "b")
    assert str(tmp_path) not in e.value.message


def test_operators_of_onnx_runtime_are_run(tmp_path):
    source = onnx_models.one_node(tmp_path / "m.onnx", "com.microsoft::Gelu", "x", "y")
    build_bundle(source, tmp_path / "b")


def test_an_input_of_any_number_of_dimensions_is_refused(tmp_path):
    source = onnx_models.save(
        tmp_path / "m.onnx",
        [("Identity", "x", "y")],
        [("x", onnx_models.FLOAT, None)],
        [("y", onnx_models.FLOAT, None)],
    )
    with pytest.raises(SourceError, match="does not say how many dimensions its input 'x' has"):
        build_bundle(source, tmp_path / "b")


def test_what_is_told_of_a_model_stays_and_what_is_told_of_a_machine_goes(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx", notes={"character": "abc"})
    model = onnx.load(source)
    model.graph.node[0].doc_string = "/home/somebody/train.py"
    source.write_bytes(model.SerializeToString())
    built = onnx.load(build_bundle(source, tmp_path / "b").path("model.onnx"))
    assert [(note.key, note.value) for note in built.metadata_props] == [("character", "abc")]
    assert not built.graph.node[0].doc_string


def test_labels_are_those_of_an_output(tmp_path):
    source = onnx_models.mlp(tmp_path / "m.onnx")
    labels = ("oil", "water", "air")
    assert build_bundle(source, tmp_path / "b", labels=labels).manifest.interface.labels == labels
    with pytest.raises(RecipeError, match="There are 2 labels"):
        build_bundle(source, tmp_path / "c", labels=labels[:2])


def test_every_key_of_a_recipe_for_onnx_files_is_read(tmp_path):
    source = onnx_models.counter(tmp_path / "m.onnx", batch="rows")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'licence = "mit"\nmax_batch = 0\nlabels = ["a", "b"]\n[dimensions]\nrows = 3\n'
        '[[states]]\ninput = "state"\noutput = "stateN"\n[thresholds]\nrelative_difference = 0.5\n'
    )
    arguments = ["--target", "cpu-fp32", "--out", tmp_path / "b", "--recipe", recipe]
    assert export(["build", str(source), *map(str, arguments)]) == 0
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.interface.states == STATE
    assert bundle.manifest.licence == "mit"
    assert _golden(bundle)["0/inputs/x"].shape == (3, 2)
    assert bundle.manifest.evidence.tolerances == {"relative_difference": 0.5}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--adapter", "x"], "--adapter merges into a checkpoint"),
        (["--adapter-rank", "4"], "--adapter-rank is for language models"),
        (["--eval", "x"], "--eval is for checkpoints"),
        (["--task", "text-generation"], "its task is tensor-inference"),
        (["--target", "cpu-int8"], "cannot be built for cpu-int8"),
    ],
)
def test_options_of_checkpoints_are_refused_in_one_sentence(tmp_path, capsys, arguments, complaint):
    source = onnx_models.mlp(tmp_path / "m.onnx")
    said = _said(capsys, source, "--out", tmp_path / "b", "--target", "cpu-fp32", *arguments)
    assert complaint in said
    assert not (tmp_path / "b").exists()


def test_options_of_onnx_files_are_refused_for_checkpoints(tmp_path, llama):
    with pytest.raises(RecipeError, match="--golden is for ONNX files"):
        build_bundle(llama, tmp_path / "b", golden=tmp_path / "g.npz")
    with pytest.raises(RecipeError, match="max_batch is for ONNX files"):
        build_bundle(llama, tmp_path / "b", max_batch=3)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(np.float32, 0.001), (np.float16, 0.01), (ml_dtypes.bfloat16, 0.05)]
)
def test_what_is_demanded_is_what_the_types_can_hold(tmp_path, dtype, limit):
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    source = onnx_models.one_node(tmp_path / "m.onnx", "Identity", "x", "y", x=kind, y=kind)
    evidence = build_bundle(source, tmp_path / "b").manifest.evidence
    assert evidence.thresholds["relative_difference"] == limit
    assert evidence.tolerances == {"relative_difference": limit}


def test_ten_steps_come_in_the_order_of_their_numbers(tmp_path):
    np.savez(tmp_path / "g.npz", **{f"{n}/x": np.float32([[n, n]]) for n in range(11)})
    source = onnx_models.counter(tmp_path / "m.onnx")
    bundle = build_bundle(source, tmp_path / "b", states=STATE, golden=tmp_path / "g.npz")
    assert _golden(bundle)["10/inputs/state"].tolist() == [[45, 45]]


def test_a_model_without_inputs_is_refused(tmp_path):
    weights = [("w", np.ones(2, np.float32))]
    source = onnx_models.save(
        tmp_path / "m.onnx", [("Identity", "w", "y")], [], [("y", onnx_models.FLOAT, [2])], weights
    )
    with pytest.raises(SourceError, match="has no inputs"):
        build_bundle(source, tmp_path / "b")


def test_a_device_notices_other_answers(tmp_path):
    bundle = build_bundle(onnx_models.mlp(tmp_path / "m.onnx"), tmp_path / "b")
    tensors = _golden(bundle)
    tensors["1/outputs/y"][0, 0] *= 1.1
    path = bundle.path(bundle.manifest.evidence.golden)
    golden_file.save(path, tensors)
    manifest = bundle.manifest
    files = {**manifest.files, path.name: describe_file(path)}
    bundle = write_manifest(bundle.folder, dataclasses.replace(manifest, files=files))
    model = open_model(bundle)
    try:
        with pytest.raises(BundleError, match=r"relative_difference is .*, allowed is 0\.001"):
            golden.check(model)
    finally:
        model.close()


def test_a_text_that_is_not_utf8_is_refused_by_name(tmp_path):
    session = OrtSession(onnx_models.lower_case(tmp_path / "l.onnx"), threads=1)
    with pytest.raises(InvalidInputError, match="'text' is not UTF-8"):
        session.run({"text": np.array([b"\xff"], np.object_)})


def test_brackets_in_a_note_are_no_markup(tmp_path):
    bundle = build_bundle(onnx_models.mlp(tmp_path / "m.onnx", batch=1), tmp_path / "b")
    finished = Finished(bundle=bundle, tokens_per_second=None, notes=("output [any] of x",))
    console = Console(record=True, width=100)
    console.print(summary(finished))
    assert "output [any] of x" in console.export_text()
