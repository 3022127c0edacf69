"""A decoder's float32 graph with its products in 8-bit integers.

Every row of inputs (one token of one sequence) gets its own scale, and every column of
weights, so an answer depends neither on its neighbours nor on how a prompt was cut; see
``columns.py`` for the numbers and ``docs/adr/0006`` for the reasons. Layers that read the
same value share what is computed of it::

    hidden ─ · 1/factors ─┬─ |·| ─ max of row ─┬───────────────────────┐
                          └─────────────────── ÷ ─ to 8 bits ─ product ─ · ─ output

A row of zeros has the maximum 0: whatever 0 ÷ 0 becomes in 8 bits is multiplied by 0 again.

Inputs and weights are both unsigned, around 128. Signed weights would be faster on
processors without VNNI, but there ONNX Runtime adds pairs of products in 16 bits, which
overflow: outputs would depend on the processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from outpost_runtime.text.token_table import ROWS

from outpost_export import columns, graph, screened_head, tied_head
from outpost_export.blocks import Floats, quantize_rows
from outpost_export.columns import Columns
from outpost_export.grid import INVERSE, Grid
from outpost_export.screened_head import Rows

_STEP, _ZERO, _ONE = "/int8/step", "/int8/zero", "/int8/one"
_CHANNELS, _AS_MATRIX = "/int8/channels", "/int8/as_matrix"
_QUANTIZED, _LARGEST, _BALANCED = "/quantized", "/largest", "/balanced"
_ROWS_AT_ONCE = 8192
_EMBEDDING_STEPS = tied_head.EMBEDDING.replace("/Gather", "/steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear layer of a quantized graph.

    Attributes:
        hidden: What it reads, before anything is scaled or rounded.
        inputs: Channels of that.
        outputs: Channels of what it returns.
    """

    hidden: str
    inputs: int
    outputs: int


def linears(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Return a float32 graph's products with weights, by the value that they read."""
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2}  # noqa: PLR2004 - rows, columns
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            found.setdefault(node.input[0], []).append(node)
    return found


def quantize(
    model: ModelProto,
    grid: Grid,
    *,
    tied: bool,
    block_size: int,
    screened: bool = False,
    in_blocks: bool = False,
) -> int:
    """Compute a decoder's products with weights in 8 bits.

    Args:
        grid: Scales of the weights, and which layers stay in blocks.
        tied: The token embedding has the head's weights: it gets rows of the quantized ones.
        screened: Of a tied head, only the likeliest tokens' products are in 8 bits; see
            ``screened_head.py``.
        in_blocks: All layers but a tied head are in blocks, if they can be divided into such;
            without it, those that would lose too much by one scale per row and column.
        block_size: Of these.

    Returns:
        Weights that the grid's scales do not reach.
    """
    graph.import_microsoft(model)
    clipped = 0
    for hidden, nodes in linears(model).items():
        weights = [_weights(model, node) for node in nodes]
        heads = tied and any(node.name == tied_head.HEAD for node in nodes)
        fit = not heads and len(weights[0]) % block_size == 0
        inverse = None
        if not (in_blocks and fit):
            inverse = grid.inverse_factors(hidden, weights, blocks_fit=fit)
        before = []
        if inverse is not None:
            graph.add(model, hidden + INVERSE, inverse)
            before = _balanced(hidden) if heads and screened else _rows(hidden)
        for node in nodes:
            part = weights.pop(0)
            if inverse is None:
                product, beyond = _in_blocks(model, node, part, grid, block_size)
            elif heads and screened:
                product, beyond = _screened_head(model, node, part, grid, inverse)
            else:
                product, beyond = _in_columns(model, node, part, grid, inverse, tied=tied)
            graph.replace(model, node, [*before, *product])
            clipped, before = clipped + beyond, []
    _declare_constants(model)
    graph.drop_unread(model)
    return clipped


def linear_of(
    node: NodeProto, producers: Mapping[str, NodeProto], shapes: Mapping[str, tuple[int, ...]]
) -> Linear | None:
    """Return the quantized layer whose outputs a node returns, if it is one.

    Args:
        node: Named as the layer was in the float32 graph.
        producers: The graph's nodes by what they return.
        shapes: The shapes of its weights.
    """
    product = producers.get(node.input[0])
    if product is None or product.op_type != "MatMulIntegerToFloat":
        return None
    inputs, outputs = shapes[product.input[1]]
    hidden = product.input[0].removesuffix(_QUANTIZED)
    return Linear(hidden=hidden, inputs=inputs, outputs=outputs)


def _declare_constants(model: ModelProto) -> None:
    graph.add(model, _STEP, np.float32(1 / columns.LARGEST))
    graph.add(model, _ONE, np.float32(1))
    graph.add(model, _ZERO, np.uint8(columns.ZERO))
    # Not -1, which ONNX Runtime 1.31 takes for another axis where a run asks for no logits.
    graph.add(model, _CHANNELS, np.array([2], np.int64))


def _weights(model: ModelProto, node: NodeProto) -> Floats:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    return numpy_helper.to_array(tensor)


def _balanced(hidden: str) -> list[NodeProto]:
    return [graph.node("Mul", [hidden, hidden + INVERSE], hidden + _BALANCED)]


def _rows(hidden: str) -> list[NodeProto]:
    """Return the nodes that bring what layers read into 8 bits."""
    balanced, sizes, shares = hidden + _BALANCED, f"{hidden}/sizes", f"{hidden}/shares"
    largest = hidden + _LARGEST
    return [
        *_balanced(hidden),
        graph.node("Abs", [balanced], sizes),
        graph.node("ReduceMax", [sizes, _CHANNELS], largest, keepdims=1),
        graph.node("Div", [balanced, largest], shares),
        graph.node("QuantizeLinear", [shares, _STEP, _ZERO], hidden + _QUANTIZED),
    ]


def _in_columns(
    model: ModelProto,
    node: NodeProto,
    weights: Floats,
    grid: Grid,
    inverse: Floats,
    *,
    tied: bool,
) -> tuple[list[NodeProto], int]:
    quantized = _quantized(node, weights, grid, inverse)
    product = _tied_head if tied and node.name == tied_head.HEAD else _product
    return product(model, node, quantized), quantized.clipped


def _quantized(node: NodeProto, weights: Floats, grid: Grid, inverse: Floats) -> Columns:
    scales = grid.scales(f"{node.input[1]}/scales", weights.shape[1:])
    # By the inverse's inverse, to the last bit: a build on this grid knows nothing else.
    return columns.quantize(weights, np.float32(1) / inverse, scales)


def _product(model: ModelProto, node: NodeProto, quantized: Columns) -> list[NodeProto]:
    hidden, output = node.input[0], node.output[0]
    values, scales, zeros = _add_columns(model, node.input[1], quantized.values, quantized.scales)
    inputs = [hidden + _QUANTIZED, values, _STEP, scales, _ZERO, zeros]
    steps = f"{output}/of_integers"
    return [
        graph.node("MatMulIntegerToFloat", inputs, steps, domain=graph.MICROSOFT),
        _scaled(node, steps),
    ]


def _scaled(node: NodeProto, product: str) -> NodeProto:
    # Under the old node's name: whoever looks for a layer finds where its outputs come from.
    inputs = [product, node.input[0] + _LARGEST]
    return helper.make_node("Mul", inputs, list(node.output), name=node.name)


def _in_blocks(
    model: ModelProto, node: NodeProto, weights: Floats, grid: Grid, block_size: int
) -> tuple[list[NodeProto], int]:
    inputs, outputs = weights.shape
    names = f"{node.input[1]}/values", f"{node.input[1]}/scales"
    scales = grid.scales(names[1], (outputs, inputs // block_size))
    blocks = quantize_rows(np.ascontiguousarray(weights.T), block_size, scales)
    graph.add(model, names[0], blocks.values.reshape(outputs, -1, block_size))
    graph.add(model, names[1], blocks.scales)
    size = {"K": inputs, "N": outputs, "bits": 8, "block_size": block_size, "accuracy_level": 4}
    product = helper.make_node(
        "MatMulNBits", [node.input[0], *names], list(node.output),
        name=node.name, domain=graph.MICROSOFT, **size,
    )  # fmt: skip
    return [product], blocks.clipped


def _tied_head(model: ModelProto, node: NodeProto, quantized: Columns) -> list[NodeProto]:
    """Return the head's product, with the embedding outside of the graph; see ``tied_head.py``."""
    hidden, output, weights = node.input[0], node.output[0], node.input[1]
    rows = np.ascontiguousarray(quantized.values.T)
    own = f"{output}/of_integers"
    matrix = [f"{own}/inputs", _STEP, _ZERO]
    product = tied_head.product(model, matrix, weights, rows, f"{own}/matrix")
    scales, _ = _add_scales(model, weights, quantized.scales)
    _tie_embedding(model, _rows_from_outside(model, rows.shape[1]), scales, hidden + INVERSE)
    graph.add(model, _AS_MATRIX, np.array([-1, rows.shape[1]], np.int64))
    graph.add(model, f"{own}/width", np.array([len(rows)], np.int64))
    return [
        graph.node("Reshape", [hidden + _QUANTIZED, _AS_MATRIX], f"{own}/inputs"),
        *product,
        graph.node("Shape", [hidden], f"{own}/rows", start=0, end=2),
        graph.node("Concat", [f"{own}/rows", f"{own}/width"], f"{own}/shape", axis=0),
        graph.node("Reshape", [f"{own}/matrix", f"{own}/shape"], own, allowzero=1),
        _scaled(node, own),
    ]


def _screened_head(
    model: ModelProto, node: NodeProto, weights: Floats, grid: Grid, inverse: Floats
) -> tuple[list[NodeProto], int]:
    """Return the head's product, with the embedding's rows in the graph."""
    hidden, name = node.input[0], node.input[1]
    quantized = _quantized(node, weights, grid, inverse)
    table = np.ascontiguousarray(quantized.values.T)
    usual = grid.usual(hidden)
    logits = _logits(table, quantized.scales, usual * inverse)
    screen = screened_head.Screen(rows=np.ascontiguousarray(weights.T), usual=usual, logits=logits)
    preview, beyond = screened_head.preview(model, node, screen, grid)
    graph.add(model, f"{name}/values", table)
    graph.add(model, f"{name}/scales", quantized.scales)
    rows = Rows(
        values=f"{name}/values",
        scales=f"{name}/scales",
        zero=_ZERO,
        one=_ONE,
        balanced=hidden + _BALANCED,
    )
    ids = _embedding(model).input[1]
    steps = screened_head.look_up(rows, ids, _EMBEDDING_STEPS)
    _tie_embedding(model, steps, rows.scales, hidden + INVERSE)
    return [*preview, *screened_head.repair(model, node, rows, len(table))], (
        quantized.clipped + beyond
    )


def _logits(table: NDArray[np.uint8], scales: Floats, balanced: Floats) -> Floats:
    """Return the products of rows in 8 bits with what was balanced for them, in float32.

    Of integers that did not change, the sums have the same bits on every machine: float64 rounds
    far below them.
    """
    column = balanced.astype(np.float64)
    parts = np.array_split(table, -(-len(table) // _ROWS_AT_ONCE))
    sums = [(part.astype(np.float64) - columns.ZERO) @ column for part in parts]
    logits: Floats = (np.concatenate(sums) * scales).astype(np.float32)
    return logits


def _rows_from_outside(model: ModelProto, channels: int) -> list[NodeProto]:
    tied_head.declare_rows(model, _embedding(model).input[1], channels)
    return [graph.node("DequantizeLinear", [ROWS, _ONE, _ZERO], _EMBEDDING_STEPS)]


def _embedding(model: ModelProto) -> NodeProto:
    return next(node for node in model.graph.node if node.name == tied_head.EMBEDDING)


def _tie_embedding(
    model: ModelProto, steps: list[NodeProto], scales: str, inverse_factors: str
) -> None:
    """Let the embedding have the head's weights.

    Args:
        steps: The nodes that return its rows in 8 bits, as float32.
    """
    gather = _embedding(model)
    table, ids = gather.input
    own = tied_head.EMBEDDING.removesuffix("/Gather")
    scale = f"{own}/scale"
    lookup = [
        *steps,
        graph.node("Gather", [scales, ids], scale),
        graph.node("Unsqueeze", [scale, _CHANNELS], f"{scale}/column"),
        graph.node("Mul", [_EMBEDDING_STEPS, f"{scale}/column"], f"{own}/balanced"),
        helper.make_node(
            "Mul", [f"{own}/balanced", inverse_factors], list(gather.output), name=gather.name
        ),
    ]
    graph.replace(model, gather, lookup)
    for node in [node for node in model.graph.node if table in node.output]:
        model.graph.node.remove(node)  # the head's weights, transposed


def _add_columns(
    model: ModelProto, name: str, values: NDArray[np.uint8], scales: Floats
) -> tuple[str, str, str]:
    graph.add(model, f"{name}/values", values)
    return f"{name}/values", *_add_scales(model, name, scales)


def _add_scales(model: ModelProto, name: str, scales: Floats) -> tuple[str, str]:
    graph.add(model, f"{name}/scales", scales)
    graph.add(model, f"{name}/zeros", np.full(len(scales), columns.ZERO, np.uint8))
    return f"{name}/scales", f"{name}/zeros"
