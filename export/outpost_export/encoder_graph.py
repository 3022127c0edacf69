"""Encoder graphs, written by torch.onnx with dynamic batch and sequence.

Quantized encoders use ``MatMulNBits`` as decoders do: one scale for each block of
weights, activations quantized per block in the run. ``quantize_dynamic`` is 1.4
times faster on MiniLM, but its one activation scale per tensor makes results
depend on what else is in the batch (docs/adr/0002).
"""

import inspect
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, numpy_helper

from outpost_export import block_graph, graph
from outpost_export.blocks import quantize_rows
from outpost_export.errors import ConversionError
from outpost_export.grid import FreshGrid, FrozenGrid, Grid
from outpost_export.pooling import Pooling, pool
from outpost_export.quiet import quietly

EMBEDDING_OUTPUT = "sentence_embedding"
LOGITS_OUTPUT = "logits"


class SentenceEncoder(torch.nn.Module):
    """Token ids to one vector per text.

    Args:
        model: An encoder of transformers with ``last_hidden_state``.
        pooling: What the source says.
    """

    output = EMBEDDING_OUTPUT

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return [batch, hidden] from [batch, sequence] int64 ids and mask."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)


class Classifier(torch.nn.Module):
    """Token ids to logits; [batch, labels] or [batch, sequence, labels].

    Args:
        model: A classifier of transformers with ``logits``.
    """

    output = LOGITS_OUTPUT

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of one segment."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return output.logits  # type: ignore[no-any-return]  # transformers is untyped


class PairClassifier(Classifier):
    """The same for models that tell two segments apart, such as BERT."""

    def forward(  # type: ignore[override]  # torch's export reads the parameters' names
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Return the logits of two segments."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return output.logits  # type: ignore[no-any-return]  # transformers is untyped


Encoder = SentenceEncoder | Classifier


def classifier(model: Any) -> Classifier:
    """Wrap a classifier of transformers, with segments if it has them."""
    parameters = inspect.signature(model.forward).parameters
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return (
        PairClassifier(model) if "token_type_ids" in parameters and segments else Classifier(model)
    )


def input_names(encoder: Encoder) -> list[str]:
    """Return the names of an encoder's inputs."""
    return list(inspect.signature(encoder.forward).parameters)


def write_encoder_graph(
    encoder: Encoder,
    out: Path,
    *,
    bits: int | None,
    block_size: int,
    grid: FrozenGrid | None = None,
) -> dict[str, float]:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``out``.

    Args:
        encoder: In evaluation mode.
        bits: 4 or 8 for weights in blocks, None for float32.
        grid: The predecessor's, to quantize on.

    Returns:
        Evidence on the grid, if there is one.

    Raises:
        ConversionError: torch cannot export the model.
        RecipeError: The predecessor is another kind of model.
    """
    path = out / "model.onnx"
    _export(encoder, path)
    model, clipped = graph.load(path), 0
    if bits is not None:
        clipped = quantize(model, grid or FreshGrid(), bits=bits, block_size=block_size)
    graph.save(model, path)
    return {} if grid is None else grid.compare(path, clipped)


def quantize(model: ModelProto, grid: Grid, *, bits: int, block_size: int) -> int:
    """Bring matrix weights into blocks of ``bits``, and embeddings into blocks of 8 bits.

    Returns:
        Weights that the grid's scales do not reach.
    """
    graph.import_microsoft(model)
    embeddings = [node for node in model.graph.node if _is_embedding(model, node, block_size)]
    clipped = sum(_quantize_embedding(model, node, grid, block_size) for node in embeddings)
    return clipped + block_graph.quantize(model, grid, bits=bits, block_size=block_size)


def _export(encoder: Encoder, path: Path) -> None:
    names = input_names(encoder)
    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in names}
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    try:
        with quietly():
            torch.onnx.export(
                encoder.eval(),
                (),
                path,
                kwargs=example,
                dynamo=True,
                dynamic_shapes={name: {0: batch, 1: sequence} for name in names},
                output_names=[encoder.output],
            )
    except Exception as error:  # torch raises what it likes on models that it cannot trace
        raise ConversionError(f"torch cannot export the model: {error}") from error


def _is_embedding(model: ModelProto, node: onnx.NodeProto, block_size: int) -> bool:
    if node.op_type != "Gather":
        return False
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shape = shapes.get(node.input[0], ())
    is_table = len(shape) == 2 and shape[0] > block_size  # noqa: PLR2004 - rows and columns
    return is_table and shape[1] % block_size == 0


def _quantize_embedding(
    model: ModelProto, node: onnx.NodeProto, grid: Grid, block_size: int
) -> int:
    name = node.input[0]
    table = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    rows, columns = table.shape
    scales = grid.scales(f"{name}_scales", (rows, columns // block_size))
    blocks = quantize_rows(table, block_size, scales)
    names = f"{name}_Q8", f"{name}_scales"
    graph.add(model, names[0], blocks.values)
    graph.add(model, names[1], blocks.scales)
    lookup = graph.quantized_lookup(node, *names, bits=8, block_size=block_size)
    graph.replace(model, node, [lookup])
    graph.drop_if_unused(model, name)
    return blocks.clipped
