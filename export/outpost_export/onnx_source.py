"""Sources that are one ONNX file, perhaps with weights in other files beside it.

Rules, kept before any of it is run:

1. The file is a valid ONNX model of at most 2 GiB: what protobuf can hold.
2. Its weights lie in its own folder or below: no absolute path, no ``..``, no link that
   leads out. A model must not make the exporter ship files of the machine it runs on.
3. Operators are those that the runtime has. Libraries of custom operators would be
   code of the model, which is never run.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from outpost_runtime.bundle import describe_file

from outpost_export import graph
from outpost_export.errors import SourceError

SUFFIX = ".onnx"

Size = int | str | None
"""Of a dimension: fixed, free with a name, or free without one."""

_ROUNDING, _ROUNDING_HALF, _ROUNDING_QUANTIZED = 1e-3, 1e-2, 5e-2
_TYPES_THAT_ROUND: dict[int, float] = {
    TensorProto.FLOAT16: _ROUNDING_HALF,
    TensorProto.BFLOAT16: _ROUNDING_QUANTIZED,
}
_QUANTIZED = re.compile(r"Quantize|QLinear|Integer$")
_LARGEST_FILE = (1 << 31) - 1
_NO_NAMES = ("", "?")  # Paddle's exporter writes the second for any free dimension
_CHECKER_FAULTS = (onnx.checker.ValidationError, ValueError, RuntimeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxSource:
    """An ONNX file that passed the rules, with all its weights in memory.

    Attributes:
        sizes: For each input, in the model's order, the sizes of its dimensions.
        digests: SHA-256 of the file and of its weights' files by name.
    """

    path: Path
    model: ModelProto
    sizes: dict[str, tuple[Size, ...]]
    digests: dict[str, str]

    @property
    def rounding(self) -> float:
        """How far answers may be off, relatively, because the model's own types round."""
        coarse = {_TYPES_THAT_ROUND.get(tensor.data_type, 0.0) for tensor in _tensors(self.model)}
        coarse |= {
            _TYPES_THAT_ROUND.get(value.type.tensor_type.elem_type, 0.0)
            for value in (*self.model.graph.input, *self.model.graph.output)
        }
        if any(_QUANTIZED.search(node.op_type) for node in self.model.graph.node):
            coarse.add(_ROUNDING_QUANTIZED)
        return max(coarse | {_ROUNDING})

    def write(self, out: Path) -> None:
        """Write ``model.onnx`` and ``model.onnx.data`` into a folder, without debugging notes."""
        graph.strip_notes(self.model)
        graph.write(self.model, out / "model.onnx")


def is_onnx_file(source: Path) -> bool:
    """Whether a source is meant to be an ONNX file."""
    return source.suffix == SUFFIX


def read_onnx(path: Path) -> OnnxSource:
    """Read an ONNX file and its weights.

    Raises:
        SourceError: It breaks a rule, or is no ONNX model; the message says why.
    """
    model = _parse(path)
    sizes = _sizes(path, model)
    weights = [_weights_file(path, location) for location in sorted(_locations(model))]
    try:
        onnx.checker.check_model(str(path.absolute()))
        onnx.load_external_data_for_model(model, str(path.absolute().parent))
    except _CHECKER_FAULTS as error:
        raise SourceError(f"{path} is not a valid ONNX model: {_first_line(error)}.") from error
    if not sizes:
        raise SourceError(f"{path} has no inputs: it always says the same.")
    return OnnxSource(
        path=path,
        model=model,
        sizes=sizes,
        digests={
            file.relative_to(path.absolute().parent).as_posix(): describe_file(file).sha256
            for file in (path.absolute(), *weights)
        },
    )


def _parse(path: Path) -> ModelProto:
    try:
        if not path.is_file():
            raise SourceError(f"{path} is not a file.", hint="SOURCE is an ONNX file or a folder.")
        if path.stat().st_size > _LARGEST_FILE:
            raise SourceError(
                f"{path} is larger than the 2 GiB of an ONNX file.",
                hint="Save it with its weights as external data.",
            )
        model = ModelProto()
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    except DecodeError as error:
        raise SourceError(
            f"{path} is not an ONNX model: it is damaged, cut off, or something else."
        ) from error
    return model


def _weights_file(path: Path, location: str) -> Path:
    folder = path.absolute().parent
    named = PurePosixPath(location)
    if not location or named.is_absolute() or ".." in named.parts or "\\" in location:
        raise SourceError(
            f"{path} has weights at '{location}', which is outside of its folder.",
            hint="Save the model with its weights beside it.",
        )
    file = folder / named
    if not file.resolve().is_relative_to(folder.resolve()):
        raise SourceError(
            f"{path} has weights at '{location}', which is a link out of its folder.",
            hint="Copy the file itself beside the model.",
        )
    if not file.is_file():
        raise SourceError(
            f"{path} has weights at '{location}', and there is no such file.",
            hint="Keep the model and the files of its weights together.",
        )
    return file


def _locations(model: ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)
    for training in model.training_info:
        yield from _tensors_of_graph(training.initialization)
        yield from _tensors_of_graph(training.algorithm)


def _tensors_of_graph(part: GraphProto) -> Iterator[TensorProto]:
    yield from part.initializer
    for sparse in part.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(part.node)


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for part in (attribute.g, *attribute.graphs):
            yield from _tensors_of_graph(part)


def _sizes(path: Path, model: ModelProto) -> dict[str, tuple[Size, ...]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    sizes: dict[str, tuple[Size, ...]] = {}
    for value in model.graph.input:
        if value.name in weights:  # an input with a default is a weight
            continue
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
            raise SourceError(
                f"{path} does not say how many dimensions its input '{value.name}' has.",
                hint="Save it with a shape, whose sizes may be free.",
            )
        sizes[value.name] = tuple(_size(dimension) for dimension in tensor.shape.dim)
    return sizes


def _size(dimension: onnx.TensorShapeProto.Dimension) -> Size:
    if dimension.HasField("dim_value") and dimension.dim_value >= 0:
        return int(dimension.dim_value)
    return None if dimension.dim_param in _NO_NAMES else str(dimension.dim_param)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\.$", "", lines[0]) if lines else type(error).__name__
