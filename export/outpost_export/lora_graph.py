"""A second graph of a decoder's weights, in which every row of a batch has its own adapter.

Beside each linear layer of the blocks, B·(A·x) is added to W·x; A and B are inputs
that hold several adapters one behind the other, and a mask keeps of A·x what belongs
to the row's own. The contract is in ``outpost_runtime/text/adapters.py``, the reasons
for this form and what it costs are in ``docs/adr/0004-adapters.md``.

Only plain ONNX operators are added. ONNX Runtime fuses ``Transpose`` and ``MatMul``,
so that A is never copied.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from outpost_runtime.interface import AdapterSupport, LinearShape
from outpost_runtime.text.adapters import ROWS

from outpost_export import graph
from outpost_export.errors import ConversionError
from outpost_export.int8_graph import Linear, linear_of

MODEL = "model-adapters.onnx"

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that graphs or checkpoints have as one, and their parts in the order of the outputs."""

_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+_proj)/MatMul(_Q[48])?")
_BLOCK = {"attn": "self_attn", "mlp": "mlp"}
_MASK, _ZERO = "/adapters/mask", "/adapters/zero"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Linear:
    """A node of the graph that returns W·x, and the layers of the checkpoint that it is."""

    node: NodeProto
    hidden: str
    inputs: int
    parts: dict[str, int]


def write_adapter_graph(folder: Path, *, rank: int) -> AdapterSupport:
    """Write ``model-adapters.onnx`` beside ``model.onnx``; both read ``model.onnx.data``.

    Args:
        folder: Where a decoder's finished graph lies.
        rank: Largest rank of an adapter.

    Raises:
        ConversionError: The graph has no linear layers that are known here.
    """
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    linears = list(_linears(model))
    if not linears:
        raise ConversionError(
            "The graph has no linear layers that an adapter could change.",
            hint="Build it without adapter_rank, and merge adapters instead.",
        )
    support = AdapterSupport(
        model=MODEL,
        rank=rank,
        linears={
            name: LinearShape(inputs=linear.inputs, outputs=outputs)
            for linear in linears
            for name, outputs in linear.parts.items()
        },
    )
    _declare_inputs(model, support)
    _declare_constants(model, rank)
    added = {linear.node.name: _adapted(linear) for linear in linears}
    nodes = _mask(next(iter(support.linears)))
    for node in model.graph.node:
        nodes += [node, *added.get(node.name, ())]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    return support


def _linears(model: ModelProto) -> Iterator[_Linear]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    heads = _heads(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        found = _LINEAR.fullmatch(node.name)
        linear = None if found is None else _read(node, producers, shapes)
        if found is None or linear is None:
            continue
        layer, block, name = found.group(1, 2, 3)
        shares = heads[int(layer)] if name == "qkv_proj" else (1,) * len(FUSED.get(name, (name,)))
        parts = {
            f"layers.{layer}.{_BLOCK[block]}.{part}": linear.outputs * share // sum(shares)
            for part, share in zip(FUSED.get(name, (name,)), shares, strict=True)
        }
        yield _Linear(node=node, hidden=linear.hidden, inputs=linear.inputs, parts=parts)


def _read(
    node: NodeProto, producers: Mapping[str, NodeProto], shapes: Mapping[str, tuple[int, ...]]
) -> Linear | None:
    if node.op_type == "MatMulNBits":
        size = {attribute.name: attribute.i for attribute in node.attribute}
        return Linear(hidden=node.input[0], inputs=size["K"], outputs=size["N"])
    if node.op_type == "MatMul":
        inputs, outputs = shapes[node.input[1]]
        return Linear(hidden=node.input[0], inputs=inputs, outputs=outputs)
    return linear_of(node, producers, shapes)


def _heads(model: ModelProto) -> dict[int, tuple[int, int, int]]:
    """Return each layer's number of heads of queries, keys and values."""
    found = {}
    for node in model.graph.node:
        layer = re.match(r"/model/layers\.(\d+)/", node.name)
        if layer and node.op_type == "GroupQueryAttention":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            shared = attributes["kv_num_heads"]
            found[int(layer.group(1))] = (attributes["num_heads"], shared, shared)
    return found


def _declare_inputs(model: ModelProto, support: AdapterSupport) -> None:
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    add = model.graph.input.append
    add(helper.make_tensor_value_info(ROWS, TensorProto.INT64, [batch]))
    for name, shape in support.linears.items():
        for suffix, width in ((".lora_A", shape.inputs), (".lora_B", shape.outputs)):
            stacked = helper.make_tensor_value_info(
                name + suffix, TensorProto.FLOAT, ["adapters_times_rank", width]
            )
            add(stacked)


def _declare_constants(model: ModelProto, rank: int) -> None:
    add = model.graph.initializer.append
    for name, value in {"first": 0, "step": 1, "rank": rank}.items():
        add(helper.make_tensor(f"/adapters/{name}", TensorProto.INT64, [], [value]))
    add(helper.make_tensor("/adapters/axes", TensorProto.INT64, [2], [1, 2]))
    add(helper.make_tensor(_ZERO, TensorProto.FLOAT, [], [0.0]))


def _mask(linear: str) -> list[NodeProto]:
    """Return nodes that tell, per row and stacked rank, whether it is of the row's adapter.

    Once per run: [batch, 1, adapters · rank], true where rank // R is the row's index.
    """
    own = "/adapters/"
    return [
        graph.node("Unsqueeze", [ROWS, own + "axes"], own + "wanted"),
        graph.node("Shape", [linear + ".lora_A"], own + "stacked", start=0, end=1),
        graph.node("Squeeze", [own + "stacked"], own + "end"),
        graph.node("Range", [own + "first", own + "end", own + "step"], own + "ranks"),
        graph.node("Div", [own + "ranks", own + "rank"], own + "owners"),
        graph.node("Equal", [own + "wanted", own + "owners"], _MASK),
    ]


def _adapted(linear: _Linear) -> list[NodeProto]:
    """Return the nodes behind a linear one; its consumers read what they add up."""
    node = linear.node
    output = node.output[0]
    node.output[0] = f"{output}/of_base"
    nodes, changes = [], []
    for name in linear.parts:
        own = f"/adapters/{name}/"
        nodes += [
            graph.node("Transpose", [name + ".lora_A"], own + "columns", perm=[1, 0]),
            graph.node("MatMul", [linear.hidden, own + "columns"], own + "all"),
            graph.node("Where", [_MASK, own + "all", _ZERO], own + "kept"),
            graph.node("MatMul", [own + "kept", name + ".lora_B"], own + "change"),
        ]
        changes.append(own + "change")
    change = changes[0]
    if len(changes) > 1:
        change = f"/adapters{node.name}/change"
        nodes.append(graph.node("Concat", changes, change, axis=-1))
    return [*nodes, graph.node("Add", [node.output[0], change], output)]
