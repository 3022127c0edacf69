"""Passes over finished ONNX graphs: what the builder leaves undone, and what must not ship."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

NUM_LOGITS = "num_logits_to_keep"
"""A decoder's input: how many of a run's last tokens get logits."""

_EXTERNAL_FROM_BYTES = 1024


def load(path: Path) -> ModelProto:
    """Read a model and its external data into memory."""
    return onnx.load(path)


def save(model: ModelProto, path: Path) -> None:
    """Write a model without notes, with all larger tensors in ``<name>.data`` beside it."""
    strip_notes(model)
    model.producer_name, model.producer_version = "outpost-export", ""
    del model.metadata_props[:]
    write(model, path)


def write(model: ModelProto, path: Path) -> None:
    """Write a model as it is, with all larger tensors in ``<name>.data`` beside it."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to an existing file
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=data.name,
        size_threshold=_EXTERNAL_FROM_BYTES,
    )


def strip_notes(model: ModelProto) -> None:
    """Remove the debugging notes that exporters leave in graphs.

    Stack traces with paths of the building machine, a hash of the builder's installation:
    they would differ between machines, and they tell strangers about ours.
    """
    model.doc_string = ""
    bodies = [thing for function in model.functions for thing in _described_nodes(function.node)]
    for thing in (*_described(model.graph), *model.functions, *bodies):
        thing.doc_string = ""
        del thing.metadata_props[:]


def _described(graph: GraphProto) -> Iterator[Any]:
    yield graph
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    yield from _described_nodes(graph.node)


def _described_nodes(nodes: Iterable[NodeProto]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:  # branches and loops have graphs of their own
            own = [attribute.g] if attribute.HasField("g") else []
            for inner in (*own, *attribute.graphs):
                yield from _described(inner)


def fix_head_dim(model: ModelProto, head_dim: int) -> None:
    """Write the head size into the key/value inputs and outputs, where the builder has a name."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = head_dim


def choose_logits_at_run_time(model: ModelProto) -> bool:
    """Let a run say of how many of its last tokens it wants the logits.

    The builder's pruned head reads the last token only. A draft is verified by the
    logits of several, and a piece of a prompt that is not its end needs none: the
    pruning becomes a ``Slice`` that the int64 input ``num_logits_to_keep`` [1] steers.

    Returns:
        Whether there was a pruned head.
    """
    pruned = _find(model.graph.node, "/lm_head/prune/Gather")
    widened = _find(model.graph.node, "/lm_head/prune/Unsqueeze")
    if pruned is None or widened is None:
        return False
    hidden, kept = pruned.input[0], widened.output[0]
    constants = {"logits_end": np.iinfo(np.int64).max, "logits_axis": 1}
    for name, value in constants.items():
        tensor = helper.make_tensor(name, TensorProto.INT64, [1], [value])
        model.graph.initializer.append(tensor)
    nodes = [
        helper.make_node(
            "Shape", [hidden], ["logits_tokens"], name="logits_tokens", start=1, end=2
        ),
        helper.make_node(
            "Sub", ["logits_tokens", NUM_LOGITS], ["logits_first"], name="logits_first"
        ),
        helper.make_node("Slice", [hidden, "logits_first", *constants], [kept], name="logits_kept"),
    ]
    model.graph.node.remove(pruned)
    replace(model, widened, nodes)
    count = helper.make_tensor_value_info(NUM_LOGITS, TensorProto.INT64, [1])
    model.graph.input.append(count)
    logits = next(value for value in model.graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = NUM_LOGITS
    _forget_shape(model, kept)
    drop_if_unused(model, pruned.input[1])
    return True


def tie_embedding_to_head(model: ModelProto) -> bool:
    """Let the token embedding read the quantized weights of the tied output head.

    The builder leaves the embedding of int8 models in float32, although the head
    holds the same numbers (for Gemma 3 270M: 671 MB beside 178 MB). The lookup
    becomes a ``GatherBlockQuantized`` on the head's blocks.

    Returns:
        Whether there was a float embedding and a quantized head to tie.
    """
    gather = _find(model.graph.node, "/model/embed_tokens/Gather")
    heads = [n for n in model.graph.node if n.name.startswith("/lm_head/MatMul_Q")]
    if gather is None or gather.op_type != "Gather" or len(heads) != 1:
        return False
    attributes = {a.name: a.i for a in heads[0].attribute}
    if any(heads[0].input[3:4]):
        return False  # the head has zero points, which no build of ours asks for
    _, blocks, scales = heads[0].input[:3]
    columns = attributes["K"] * attributes["bits"] // 8
    model.graph.initializer.append(
        helper.make_tensor("embed_shape", TensorProto.INT64, [2], [attributes["N"], columns])
    )
    rows = helper.make_node("Reshape", [blocks, "embed_shape"], ["embed_rows"], name="embed_rows")
    bits, block_size = attributes["bits"], attributes["block_size"]
    lookup = quantized_lookup(gather, "embed_rows", scales, bits=bits, block_size=block_size)
    weights = gather.input[0]
    replace(model, gather, [rows, lookup])
    drop_if_unused(model, weights)
    return True


def quantized_lookup(
    gather: NodeProto, rows: str, scales: str, *, bits: int, block_size: int
) -> NodeProto:
    """Return a lookup of quantized rows that can take the place of a ``Gather`` of float ones.

    Args:
        rows: Name of the [rows, columns · bits / 8] uint8 values.
        scales: Name of the [rows, columns / block_size] float32 scales.
    """
    return helper.make_node(
        "GatherBlockQuantized",
        [rows, gather.input[1], scales],
        list(gather.output),
        name=gather.name,
        domain=MICROSOFT,
        bits=bits,
        block_size=block_size,
        gather_axis=0,
        quantize_axis=1,
    )


def node(
    operator: str, inputs: list[str], output: str, *, domain: str | None = None, **attributes: Any
) -> NodeProto:
    """Return a node with one output, named by what it returns."""
    name = f"{output}/{operator}"
    return helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)


def add(model: ModelProto, name: str, value: Any) -> None:
    """Give the model a weight or a constant."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def replace(model: ModelProto, node: NodeProto, by: list[NodeProto]) -> None:
    """Put other nodes in the place of one."""
    position = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    for offset, successor in enumerate(by):
        model.graph.node.insert(position + offset, successor)


def drop_if_unused(model: ModelProto, initializer: str) -> None:
    """Remove a weight or a constant that no node reads any more."""
    if any(initializer in node.input for node in model.graph.node):
        return
    constant = next((node for node in model.graph.node if initializer in node.output), None)
    if constant is not None:
        model.graph.node.remove(constant)
    drop_unread(model)


def drop_unread(model: ModelProto) -> None:
    """Remove the weights that no node reads."""
    # One by one, and in place: copying what is kept would take the whole model's memory again.
    read = {name for node in model.graph.node for name in node.input}
    tensors = model.graph.initializer
    for index in reversed(range(len(tensors))):
        if tensors[index].name not in read:
            del tensors[index]


def import_microsoft(model: ModelProto) -> None:
    """Declare that the model uses ONNX Runtime's own operators."""
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _find(nodes: Iterable[NodeProto], name: str) -> NodeProto | None:
    return next((node for node in nodes if node.name == name), None)


def _forget_shape(model: ModelProto, name: str) -> None:
    known = [value for value in model.graph.value_info if value.name != name]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
