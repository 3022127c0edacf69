"""A head and an embedding that are one weight, in 8 bits with a scale for each token.

ONNX Runtime packs a head's weights and gives back the form in which it has read them, unless
somebody reads that, too; while it packs one, it holds it three times. So the embedding is not in
the graph: a run gets the rows of its tokens as an input, which the runtime reads from the data
file (``outpost_runtime/text/token_table.py``). And the head is in parts, one behind the other in
that file, so that their rows are one table::

    hidden ─ to 8 bits ─┬─ QGemm, part 0 ─┬─ side by side ─ · largest ─ logits
                        └─ QGemm, part n ─┘

What that saves is in ``docs/adr/0008``.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from outpost_runtime.interface import TokenTable
from outpost_runtime.text.token_table import ROWS

from outpost_export import graph
from outpost_export.errors import ConversionError

EMBEDDING = "/model/embed_tokens/Gather"
HEAD = "/lm_head/MatMul"

_PART_BYTES = 16 << 20
_PART = "/part."


def token_table(path: Path) -> TokenTable | None:
    """Return where a graph's table of tokens lies; None: it has its embedding inside.

    Args:
        path: The finished graph, its data file beside it.

    Raises:
        ConversionError: The parts do not lie one behind the other.
    """
    model = onnx.load(path, load_external_data=False)
    if all(value.name != ROWS for value in model.graph.input):
        return None
    parts = [tensor for tensor in model.graph.initializer if _PART in tensor.name]
    places = [{entry.key: entry.value for entry in part.external_data} for part in parts]
    file, start = places[0]["location"], int(places[0]["offset"])
    end = start
    for place in places:
        if (place["location"], int(place["offset"])) != (file, end):
            raise ConversionError("The head's parts do not lie one behind the other: report this.")
        end += int(place["length"])
    tokens, width = sum(part.dims[0] for part in parts), parts[0].dims[1]
    return TokenTable(file=file, start=start, tokens=tokens, row_bytes=width)


def declare_rows(model: ModelProto, ids: str, channels: int) -> None:
    """Give the graph an input of the rows of its tokens, in the shape of ``ids`` and beside it."""
    known = next(value for value in model.graph.input if value.name == ids)
    shape = [size.dim_param for size in known.type.tensor_type.shape.dim]
    rows = helper.make_tensor_value_info(ROWS, TensorProto.UINT8, [*shape, channels])
    model.graph.input.append(rows)


def product(
    model: ModelProto, matrix: list[str], weights: str, rows: NDArray[np.uint8], output: str
) -> list[NodeProto]:
    """Return the nodes of a head's product of matrices, and add its weights.

    Only ``QGemm`` takes weights with one row for each token.

    Args:
        matrix: Names of the [n, channels] uint8 inputs, of their scale and of their zero point.
        weights: What the weights' names begin with.
        rows: [tokens, channels].
        output: Name of the [n, tokens] float32 outputs.
    """
    parts = np.array_split(rows, -(-rows.nbytes // _PART_BYTES))
    numbers = range(len(parts))
    for number, part in enumerate(parts):
        graph.add(model, f"{weights}{_PART}{number}", part)
    graph.add(model, f"{weights}/sizes", np.array([len(part) for part in parts], np.int64))
    shares = {
        name: [f"{weights}/{name}{_PART}{number}" for number in numbers]
        for name in ("scales", "zeros")
    }
    nodes = [
        helper.make_node(
            "Split", [f"{weights}/{name}", f"{weights}/sizes"], names, name=f"{output}/{name}"
        )
        for name, names in shares.items()
    ]
    outputs = [f"{output}{_PART}{number}" for number in numbers]
    for number, part_output in enumerate(outputs):
        own = [f"{weights}{_PART}{number}", *(names[number] for names in shares.values())]
        inputs = [*matrix, *own]
        nodes.append(graph.node("QGemm", inputs, part_output, domain=graph.MICROSOFT, transB=1))
    return [*nodes, graph.node("Concat", outputs, output, axis=1)]
