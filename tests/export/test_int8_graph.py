"""Products in 8-bit integers: exact, row by row, and close to what they replace."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from outpost_export import calibration, columns, int8_graph, tied_head
from outpost_export.evaluation import read_text
from outpost_export.grid import FreshGrid
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.token_table import ROWS, token_rows, with_table

from tests.support import checkpoints
from tests.support.building import build_bundle

_LOOSE = {"thresholds": {"perplexity_increase": 9.0}}


def _graph(weights):
    """Return a float32 graph of products that all read x, one output each."""
    names = [f"w{i}" for i in range(len(weights))]
    nodes = [helper.make_node("MatMul", ["x", n], [f"y{n}"], name=f"product {n}") for n in names]
    channels = weights[0].shape[0]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n", channels])]
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, None) for n in names]
    tensors = [numpy_helper.from_array(w, n) for n, w in zip(names, weights, strict=True)]
    opsets = [helper.make_opsetid("", 21)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _quantized(weights, seen, block_size=32):
    model = _graph(weights)
    int8_graph.quantize(model, FreshGrid({"x": seen}), tied=False, block_size=block_size)
    return model


def _run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x.astype(np.float32)})


def _tensor(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def _operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_the_largest_values_do_not_overflow_on_any_processor():
    # 127 · 127 twice is more than 16 bits hold, where processors without VNNI add signed weights.
    weights = np.full((256, 24), 0.5, np.float32)
    weights[:, ::2] *= -1
    x = np.ones((1, 3, 256), np.float32) * np.array([1, -1, 1e3], np.float32)[None, :, None]
    model = _quantized([weights], x[0])
    assert "MatMulIntegerToFloat" in _operators(model)
    np.testing.assert_allclose(_run(model, x)[0], x @ weights, rtol=1e-5)


def test_a_product_is_that_of_its_integers(random):
    weights = random.normal(size=(96, 40)).astype(np.float32)
    x = random.normal(size=(1, 7, 96)).astype(np.float32)
    model = _quantized([weights], x[0])
    inverse, scales = _tensor(model, "x/inverse_factors"), _tensor(model, "w0/scales")
    balanced = x[0] * inverse
    largest = np.abs(balanced).max(1, keepdims=True)
    integers = np.rint(balanced / largest * np.float32(127)).astype(np.int64)
    product = integers @ (_tensor(model, "w0/values").astype(np.int64) - columns.ZERO)
    np.testing.assert_allclose(_run(model, x)[0][0], product / 127 * scales * largest, rtol=1e-5)


def test_a_row_gets_the_same_bits_alone_and_among_others(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    x = random.normal(size=(8, 3, 64)) * 10.0 ** random.integers(-3, 3, size=(8, 3, 1))
    model = _quantized([weights], x[0].astype(np.float32))
    together = _run(model, x)[0]
    for row in range(8):
        for token in range(3):
            alone = _run(model, x[row : row + 1, token : token + 1])[0]
            assert (alone[0, 0] == together[row, token]).all()


def test_a_row_of_zeros_gives_zeros(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    x = random.normal(size=(1, 3, 64)).astype(np.float32)
    x[0, 1] = 0
    got = _run(_quantized([weights], x[0]), x)[0]
    assert (got[0, 1] == 0).all()
    assert np.isfinite(got).all()


def test_no_rows_give_no_rows(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    model = _quantized([weights], random.normal(size=(5, 64)).astype(np.float32))
    assert _run(model, np.zeros((2, 0, 64)))[0].shape == (2, 0, 48)


def test_layers_that_read_the_same_share_what_is_computed_of_it(random):
    weights = [random.normal(size=(64, size)).astype(np.float32) for size in (48, 16, 32)]
    x = random.normal(size=(1, 5, 64)).astype(np.float32)
    model = _quantized(weights, x[0])
    assert _operators(model).count("QuantizeLinear") == 1
    assert _operators(model).count("MatMulIntegerToFloat") == 3
    for got, part in zip(_run(model, x), weights, strict=True):
        assert np.abs(got - x @ part).max() < 0.02 * np.abs(x @ part).max()


def test_a_large_channel_is_balanced_against_its_weights(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    seen = random.normal(size=(200, 64)).astype(np.float32)
    seen[:, 3] *= 100
    exact = seen @ weights
    flat = np.ones(64, np.float32)
    found = columns.balance(seen, [weights])
    errors = [
        np.square(
            columns.rounded_rows(seen, factors)
            @ columns.dequantize(columns.quantize(weights, factors), factors)
            - exact
        ).sum()
        for factors in (found.factors, flat)
    ]
    assert errors[0] < errors[1] / 10


def test_a_layer_that_loses_too_much_is_quantized_in_blocks(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    # Each token has another large channel: no factor per channel helps.
    x = random.normal(size=(1, 64, 64)).astype(np.float32)
    x[0] += np.eye(64, dtype=np.float32) * 300
    model = _quantized([weights], x[0])
    assert _operators(model) == ["MatMulNBits"]
    assert [node.name for node in model.graph.node] == ["product w0"]
    assert np.abs(_run(model, x)[0] - x @ weights).max() < 0.02 * np.abs(x @ weights).max()


def test_a_layer_that_no_block_fits_keeps_one_scale_per_column(random):
    weights = random.normal(size=(60, 48)).astype(np.float32)
    x = random.normal(size=(1, 60, 60)).astype(np.float32)
    x[0] += np.eye(60, dtype=np.float32) * 300
    assert "MatMulNBits" not in _operators(_quantized([weights], x[0]))


def test_weights_of_zeros_and_channels_never_seen_are_no_fault(random):
    weights = random.normal(size=(64, 48)).astype(np.float32)
    weights[:, 5], weights[7] = 0, 0
    x = random.normal(size=(1, 4, 64)).astype(np.float32)
    x[..., 9] = 0
    got = _run(_quantized([weights], x[0]), x)[0]
    assert (got[..., 5] == 0).all()
    assert np.isfinite(got).all()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    source = checkpoints.save_decoder(folder / "source", request.param, tie_word_embeddings=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tied_head, "_PART_BYTES", 5000 if request.param == "gemma3" else 1 << 20)
        return build_bundle(source, folder / "bundle", "cpu-int8", **_LOOSE)


def test_a_tied_embedding_is_given_the_rows_of_the_quantized_head(bundle):
    model = onnx.load(bundle.path("model.onnx"))
    lookup = [n for n in model.graph.node if n.name.startswith("/model/embed_tokens/")]
    hidden = next(n for n in model.graph.node if n.name == "/lm_head/MatMul").input[1]
    inverse = hidden.replace("/largest", "/inverse_factors")
    parts = [t.name for t in model.graph.initializer if "/part." in t.name]
    values = np.concatenate([_tensor(model, name) for name in parts])
    scales = _tensor(model, f"{parts[0].removesuffix('/part.0')}/scales")
    ids = np.array([[5, 17, 5]])
    graph = helper.make_graph(
        [n for n in lookup if n.op_type != "Mul" or "/Gather" in n.name or "balanced" in n.name],
        "lookup",
        [value for value in model.graph.input if value.name in ("input_ids", ROWS)],
        [helper.make_tensor_value_info("/model/embed_tokens/Gather/output_0", 1, None)],
        model.graph.initializer,
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    session = onnxruntime.InferenceSession(alone.SerializeToString())
    (got,) = session.run(None, {"input_ids": ids, ROWS: values[ids]})
    want = (values[ids].astype(np.float32) - 128) * scales[ids][..., None] * _tensor(model, inverse)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    table = bundle.manifest.interface.token_table
    data = bundle.path(table.file).read_bytes()[table.start : table.end]
    assert data == values.tobytes()
    assert values.shape == (checkpoints.VOCABULARY, table.row_bytes)


def test_answers_do_not_depend_on_their_neighbours(bundle):
    table = bundle.manifest.interface.token_table
    session = with_table(OrtSession(bundle.path("model.onnx")), token_rows(bundle.contents, table))
    decoder = Decoder(session, rows=8, max_length=64)
    random = np.random.default_rng(1)
    texts = [random.integers(4, 260, size=size).tolist() for size in (20, 33, 7, 40, 11, 28, 40, 5)]
    for row, ids in enumerate(texts):
        decoder.prefill(row, ids[:3], 0, keep=0)  # no logits: the head has no rows
        decoder.prefill(row, ids[3:], 3)
    lengths = [len(ids) for ids in texts]
    together = decoder.decode([9] * 8, lengths).copy()
    for rows in (1, 2, 5):
        assert (decoder.decode([9] * rows, lengths[:rows]) == together[:rows]).all()
    decoder.close()


def test_the_calibration_text_is_not_what_builds_are_measured_on():
    measured = set(read_text(None, decoder=True).text.split(". "))
    assert not measured & set(calibration.calibration_text().split(". "))
