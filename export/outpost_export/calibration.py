"""What the linear layers of a decoder's float32 graph read, on a text of the exporter's own.

Quantization that knows what layers read loses less (see ``columns.py``). The text is
neither the one that builds are measured on nor a user's: English and German, a list,
code, a table, numbers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from outpost_export import graph
from outpost_export.blocks import Floats

_TEXT = Path(__file__).with_name("calibration_text.txt")
_LOGITS = "logits"


def calibration_text() -> str:
    """Return the text."""
    return _TEXT.read_text("utf-8")


def observed(path: Path, ids: Sequence[int], names: Sequence[str]) -> dict[str, Floats]:
    """Run a decoder's float32 graph once and return some of its values.

    Args:
        path: The graph, its weights beside it; a copy that shows these values lies there
            while it runs.
        ids: Tokens, at least one and no more than its context.
        names: Of values [batch, tokens, channels] in the graph.

    Returns:
        Each value as [tokens, channels].
    """
    model = onnx.load(path, load_external_data=False)
    _show(model, names)
    shown = path.with_name(f"shown-{path.name}")
    shown.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(shown, options, providers=["CPUExecutionProvider"])
    values = session.run(list(names), _feeds(model, ids))
    shown.unlink()
    return {name: value[0] for name, value in zip(names, values, strict=True)}


def _show(model: ModelProto, names: Sequence[str]) -> None:
    """Make values the only outputs; the head, whose logits nobody reads, is cut off."""
    for node in [node for node in model.graph.node if _LOGITS in node.output]:
        model.graph.node.remove(node)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _feeds(model: ModelProto, ids: Sequence[int]) -> dict[str, NDArray[np.generic]]:
    tokens = np.array([ids], np.int64)
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        graph.NUM_LOGITS: np.array([len(ids)], np.int64),
    }
    for value in model.graph.input:
        if value.name not in feeds:
            _, heads, _, size = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
            feeds[value.name] = np.zeros((1, heads, 0, size), np.float32)
    return feeds
