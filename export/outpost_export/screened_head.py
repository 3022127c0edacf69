"""A tied head that reads half of its bytes: every token in 4 bits, the likeliest in 8 again.

With one stream, the head of a small model is most of what a token reads, for logits of which a
few matter. Four bits are enough to say which these are::

    hidden ─┬─ less usual ─ product in 4 bits ─ + logits of usual ─┬─────────────────┬─ logits
            │                                                      └─ the largest ─┐ │
            └─ in the scales of 8 bits ──────────── product with the rows of these ──┘

It is a preview and its repair, as in SVD-softmax (Shim et al., 2017), with fewer bits instead of
fewer dimensions. *Usual* is the mean of what the head reads: its logits are exact, so that four
bits round only what differs from it (a bias correction, Nagel et al., 2019). That halves the
divergence from exact logits.

What is not among the likeliest keeps the logit of 4 bits: also where a form or a bias of the
request leaves nothing else to choose from.

The weights in 8 bits are read by rows alone, for candidates and for the embedding, whose weight
they are, too. What this gains and costs is in ``docs/adr/0006``.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from outpost_export import graph
from outpost_export.blocks import Floats, quantize_bits
from outpost_export.grid import USUAL, Grid

_CANDIDATES = 256
_BITS, _BLOCK = 4, 64
_PART_BYTES = 16 << 20
"""Of one product's weights: ONNX Runtime has what it packs several times, for a moment."""

_AXIS = 2  # of vocabularies and channels, behind batch and tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A head's weights in 8 bits, to be read by rows.

    Attributes:
        values: Name of the [tokens, channels] uint8 weights.
        scales: Name of their [tokens] float32 scales.
        zero: Name of the uint8 that is a weight of zero.
        one: Name of the float32 scale that changes nothing.
        balanced: Name of the [batch, n, channels] float32 that they are multiplied with.
    """

    values: str
    scales: str
    zero: str
    one: str
    balanced: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """What all tokens' logits are computed from.

    Attributes:
        rows: [tokens, channels], the head's weights.
        usual: [channels], the mean of what the head reads.
        logits: [tokens] of ``usual``.
    """

    rows: Floats
    usual: Floats
    logits: Floats


def look_up(rows: Rows, ids: str, output: str) -> list[NodeProto]:
    """Return the nodes that read rows as float32, without their scales.

    Args:
        ids: Name of the [...] int64 tokens.
        output: Name of the [..., channels] result.
    """
    return [
        graph.node("Gather", [rows.values, ids], f"{output}/rows"),
        graph.node("DequantizeLinear", [f"{output}/rows", rows.one, rows.zero], output),
    ]


def preview(
    model: ModelProto, node: NodeProto, screen: Screen, grid: Grid
) -> tuple[list[NodeProto], int]:
    """Return the nodes of the product in 4 bits, and add its weights.

    Args:
        node: The head, which reads hidden [batch, n, channels].

    Returns:
        The nodes, and how many weights the grid's scales do not reach.
    """
    hidden, output = node.input[0], _previewed(node)
    count = -(-screen.rows.size * _BITS // 8 // _PART_BYTES)
    rows, biases = np.array_split(screen.rows, count), np.array_split(screen.logits, count)
    outputs = [f"{output}/part.{number}" for number in range(count)]
    graph.add(model, hidden + USUAL, screen.usual)
    nodes, clipped = [graph.node("Sub", [hidden, hidden + USUAL], f"{hidden}/unusual")], 0
    for number, (part, bias) in enumerate(zip(rows, biases, strict=True)):
        own = f"{node.input[1]}/screen.{number}"
        inputs, beyond = _add_part(model, own, part, bias, grid)
        nodes.append(_product([f"{hidden}/unusual", *inputs], part.shape, outputs[number]))
        clipped += beyond
    return [*nodes, graph.node("Concat", outputs, output, axis=_AXIS)], clipped


def _add_part(
    model: ModelProto, name: str, rows: Floats, bias: Floats, grid: Grid
) -> tuple[list[str], int]:
    """Add the weights of some tokens; return the product's inputs, and what was clipped."""
    shape = len(rows), -(-rows.shape[1] // _BLOCK)
    quantized = quantize_bits(rows, _BITS, _BLOCK, grid.scales(f"{name}_scales", shape))
    graph.add(model, f"{name}_Q{_BITS}", quantized.values.reshape(*shape, -1))
    graph.add(model, f"{name}_scales", quantized.scales)
    graph.add(model, f"{name}_bias", bias)
    return [f"{name}_Q{_BITS}", f"{name}_scales", "", "", f"{name}_bias"], quantized.clipped


def _product(inputs: list[str], shape: tuple[int, int], output: str) -> NodeProto:
    tokens, channels = shape
    size = {"K": channels, "N": tokens, "bits": _BITS, "block_size": _BLOCK, "accuracy_level": 4}
    return graph.node("MatMulNBits", inputs, output, domain=graph.MICROSOFT, **size)


def repair(model: ModelProto, node: NodeProto, rows: Rows, tokens: int) -> list[NodeProto]:
    """Return the nodes that compute the likeliest tokens' logits again, under the head's name."""
    previewed, own = _previewed(node), f"{node.output[0]}/likeliest"
    graph.add(model, f"{own}/count", np.array([min(_CANDIDATES, tokens)], np.int64))
    graph.add(model, f"{own}/axis", np.array([_AXIS + 1], np.int64))
    largest = helper.make_node(
        "TopK", [previewed, f"{own}/count"], [f"{own}/values", f"{own}/ids"],
        name=f"{own}/TopK", axis=_AXIS, sorted=0,
    )  # fmt: skip
    product = [f"{own}/steps", f"{own}/column"]
    return [
        largest,
        *look_up(rows, f"{own}/ids", f"{own}/steps"),
        graph.node("Unsqueeze", [rows.balanced, f"{own}/axis"], f"{own}/column"),
        graph.node("MatMul", product, f"{own}/products"),
        graph.node("Squeeze", [f"{own}/products", f"{own}/axis"], f"{own}/of_steps"),
        graph.node("Gather", [rows.scales, f"{own}/ids"], f"{own}/scales"),
        graph.node("Mul", [f"{own}/of_steps", f"{own}/scales"], f"{own}/logits"),
        helper.make_node(
            "ScatterElements", [previewed, f"{own}/ids", f"{own}/logits"], list(node.output),
            name=node.name, axis=_AXIS,
        ),
    ]  # fmt: skip


def _previewed(node: NodeProto) -> str:
    return f"{node.output[0]}/preview"
