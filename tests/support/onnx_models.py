"""Tiny ONNX files, written node by node; the same every time."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, STRING, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.STRING,
    TensorProto.INT64,
    TensorProto.BOOL,
)
BFLOAT16 = TensorProto.BFLOAT16

_OPSETS = {"": 17, "com.microsoft": 1}


def save(path: Path, nodes, inputs, outputs, weights=(), *, external=None, notes=()) -> Path:
    """Write a model.

    Args:
        nodes: Operator, inputs, outputs, and perhaps attributes.
        inputs: Name, type, sizes (a number, a name, or None).
        outputs: The same.
        weights: Name and array.
        external: File name of the weights, if they shall not be in the model.
        notes: Metadata by key.
    """
    graph = helper.make_graph(
        [_node(*node) for node in nodes],
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    domains = {"", *(node.domain for node in graph.node)}
    opsets = [helper.make_opsetid(domain, _OPSETS.get(domain, 1)) for domain in sorted(domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, dict(notes))
    path.parent.mkdir(parents=True, exist_ok=True)
    if external is None:
        onnx.save_model(model, path)
    else:
        (path.parent / external).parent.mkdir(exist_ok=True)
        onnx.save_model(
            model, path, save_as_external_data=True, location=external, size_threshold=0
        )
    return path


def mlp(path: Path, *, batch="batch", **changes) -> Path:
    """Two layers over [batch, 6]."""
    random = np.random.default_rng(7)
    weights = [
        ("w", random.normal(size=(6, 70)).astype(np.float32)),
        ("v", random.normal(size=(70, 3)).astype(np.float32)),
    ]
    nodes = [("MatMul", "x w", "h"), ("Relu", "h", "r"), ("MatMul", "r v", "y")]
    sides = [("x", FLOAT, [batch, 6])], [("y", FLOAT, [batch, 3])]
    return save(path, nodes, *sides, weights, **changes)


def centred(path: Path) -> Path:
    """Subtracts the mean of all rows: an answer depends on what else is in a run."""
    nodes = [("ReduceMean", "x", "m", {"axes": [0], "keepdims": 1}), ("Sub", "x m", "y")]
    return save(path, nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])


def counter(path: Path, *, batch=1) -> Path:
    """Adds its input to what it carries, which is also its answer."""
    nodes = [("Add", "state x", "stateN"), ("Mul", "stateN two", "y")]
    inputs = [("x", FLOAT, [batch, 2]), ("state", FLOAT, [batch, 2])]
    outputs = [("y", FLOAT, [batch, 2]), ("stateN", FLOAT, [batch, 2])]
    return save(path, nodes, inputs, outputs, [("two", np.float32([2]))])


def lower_case(path: Path) -> Path:
    """Texts to lower case."""
    settings = {"case_change_action": "LOWER", "locale": "C"}  # the one that is everywhere
    nodes = [("StringNormalizer", "text", "lower", settings)]
    return save(path, nodes, [("text", STRING, [None])], [("lower", STRING, [None])])


def one_node(path: Path, *node, **types) -> Path:
    """One operator from x to y, both [n, 2]; its types by name."""
    sides = [[(name, types.get(name, FLOAT), ["n", 2])] for name in "xy"]
    return save(path, [node], *sides)


def _node(operator, inputs, outputs, attributes=None):
    domain, _, name = operator.rpartition("::")
    return helper.make_node(
        name, inputs.split(), outputs.split(), domain=domain, **(attributes or {})
    )
