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
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from outpost_export import graph
from outpost_export.blocks import quantize_rows
from outpost_export.errors import ConversionError
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


def write_encoder_graph(encoder: Encoder, out: Path, *, bits: int | None, block_size: int) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``out``.

    Args:
        encoder: In evaluation mode.
        bits: 4 or 8 for weights in blocks, None for float32.

    Raises:
        ConversionError: torch cannot export the model.
    """
    names = input_names(encoder)
    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in names}
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    path = out / "model.onnx"
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
    model = graph.load(path)
    if bits is not None:
        model = quantize(model, bits=bits, block_size=block_size)
    graph.save(model, path)


def quantize(model: ModelProto, *, bits: int, block_size: int) -> ModelProto:
    """Return the model with matrix weights and embeddings in blocks of ``bits``."""
    embeddings = [node for node in model.graph.node if _is_embedding(model, node, block_size)]
    for node in embeddings:
        _quantize_embedding(model, node, block_size)
    with quietly():
        quantizer = MatMulNBitsQuantizer(
            model, bits=bits, block_size=block_size, is_symmetric=True, accuracy_level=4,
            op_types_to_quantize=("MatMul",),
        )  # fmt: skip
        quantizer.process()
    quantized: ModelProto = quantizer.model.model
    return quantized


def _is_embedding(model: ModelProto, node: onnx.NodeProto, block_size: int) -> bool:
    if node.op_type != "Gather":
        return False
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shape = shapes.get(node.input[0], ())
    is_table = len(shape) == 2 and shape[0] > block_size  # noqa: PLR2004 - rows and columns
    return is_table and shape[1] % block_size == 0


def _quantize_embedding(model: ModelProto, node: onnx.NodeProto, block_size: int) -> None:
    table = next(t for t in model.graph.initializer if t.name == node.input[0])
    values, scales = quantize_rows(numpy_helper.to_array(table), block_size)
    name = table.name
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(values, f"{name}_Q8"),
            numpy_helper.from_array(scales, f"{name}_scales"),
        ]
    )
    names = f"{name}_Q8", f"{name}_scales"
    lookup = graph.quantized_lookup(node, *names, bits=8, block_size=block_size)
    graph.replace(model, node, [lookup])
    graph.drop_if_unused(model, name)
    graph.import_microsoft(model)
