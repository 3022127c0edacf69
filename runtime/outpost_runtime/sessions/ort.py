"""Sessions on ONNX Runtime, CPU execution provider."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _ort_errors

from outpost_runtime.errors import BundleError, ExecutionError, InvalidInputError
from outpost_runtime.heap import join_pages, pages_of_their_own
from outpost_runtime.sessions import weight_file
from outpost_runtime.sessions.graph import FileGraph, Graph, Opening
from outpost_runtime.sessions.ort_values import from_ort, is_special, to_ort
from outpost_runtime.tensors import Array, TensorSpec, check_feeds, datatype_of

_CPU = "CPUExecutionProvider"
_ELEMENT_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(string)": np.object_,
}
# They derive from Exception one by one; there is no common class to catch.
_ORT_EXCEPTIONS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    _ort_errors.EPFail,
    _ort_errors.EngineError,
    _ort_errors.Fail,
    _ort_errors.InvalidArgument,
    _ort_errors.InvalidGraph,
    _ort_errors.InvalidProtobuf,
    _ort_errors.NoModel,
    _ort_errors.NoSuchFile,
    _ort_errors.NotImplemented,
    _ort_errors.RuntimeException,
)


class OrtSession:
    """A model opened by ONNX Runtime on the CPU.

    Args:
        source: A graph, or the ``.onnx`` file of one; external data is looked for beside it.
        threads: Threads of one run; None lets ONNX Runtime take the physical cores.
        as_written: Run the graph node by node as the file has it, none fused or folded: slower,
            and what the optimized graph is compared with.

    Raises:
        BundleError: ONNX Runtime cannot open the model, or its files are not what they should be.
    """

    def __init__(
        self, source: Path | Graph, *, threads: int | None = None, as_written: bool = False
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what fails is raised; its log would show clients' data
        graph = FileGraph(source) if isinstance(source, Path) else source
        with graph.opened() as opening:
            self._tables = _tables(opening)
            self._session = _opened(opening, options, graph.label)
        join_pages()
        own = [node for node in self._session.get_inputs() if node.name not in self._tables]
        self._inputs = tuple(_spec(node, graph.label) for node in own)
        self._outputs = tuple(_spec(node, graph.label) for node in self._session.get_outputs())
        self._plain = not any(map(is_special, (*self._inputs, *self._outputs)))
        self._fed = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(table)
            for name, table in self._tables.items()
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See :class:`Session`."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See :class:`Session`."""
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Session`."""
        check_feeds(self._inputs, feeds)
        names = [spec.name for spec in self._outputs]
        if not self._plain:
            return self._run_values(names, feeds)
        with _execution_errors():
            values = self._session.run(names, {**feeds, **self._fed})
        return dict(zip(names, values, strict=True))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> "OrtBinding":
        """See :class:`Session`."""
        return OrtBinding(self._session, {**inputs, **self._tables}, outputs)

    def close(self) -> None:
        """See :class:`Session`."""
        del self._session
        self._tables, self._fed = {}, {}

    def _run_values(self, names: list[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = {spec.name: to_ort(spec, feeds[spec.name]) for spec in self._inputs}
        # The plain call takes texts and gives no BF16; the other one is the other way round.
        by_value = any(spec.datatype == "BF16" for spec in self._outputs)
        run = self._session.run_with_ort_values if by_value else self._session.run
        with _execution_errors():
            results = run(names, {**values, **self._fed})
        pairs = zip(self._outputs, results, strict=True)
        return {spec.name: from_ort(spec, value) for spec, value in pairs}


class OrtBinding:
    """Inputs and outputs bound by pointer; made by :meth:`OrtSession.bind`."""

    def __init__(
        self, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._alive: dict[str, Array] = {}
        for name, array in outputs.items():
            self.put(name, array)
        for name, array in inputs.items():
            self.feed(name, array)

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._keep(name, array)
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._keep(name, array)
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """See :class:`Binding`."""
        with _execution_errors():
            self._session.run_with_iobinding(self._binding)

    def _keep(self, name: str, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise AssertionError(f"the memory bound to {name} must be C-contiguous")
        self._alive[name] = array


def _tables(opening: Opening) -> dict[str, Array]:
    tables = opening.tables
    if tables.descriptor is None:
        return {}
    return weight_file.arrays(tables.descriptor, tables.weights)


def _opened(opening: Opening, options: Any, label: str) -> Any:
    apart = opening.apart
    if apart.descriptor is not None:
        arrays = weight_file.arrays(apart.descriptor, apart.weights)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)  # which it copies while it opens
    try:
        with nullcontext() if opening.pipe is None else pages_of_their_own():
            return onnxruntime.InferenceSession(opening.path, options, providers=[_CPU])
    except _ORT_EXCEPTIONS as error:
        raise BundleError(f"ONNX Runtime cannot open {label}: {error}") from error


def _spec(node: Any, label: str) -> TensorSpec:
    if node.type not in _ELEMENT_TYPES:
        raise BundleError(f"{label}: '{node.name}' is a {node.type}, which is not supported.")
    return TensorSpec(
        name=node.name,
        datatype=datatype_of(np.dtype(_ELEMENT_TYPES[node.type])),
        shape=tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape),
    )


@contextmanager
def _execution_errors() -> Iterator[None]:
    try:
        yield
    except _ort_errors.InvalidArgument as error:
        raise InvalidInputError(f"The model refuses its input: {_reason(error)}.") from error
    except _ORT_EXCEPTIONS as error:
        raise ExecutionError(f"ONNX Runtime failed: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    # What stands before the status message names nodes, files and lines of the library.
    return str(error).rpartition("Status Message: ")[2].strip().rstrip(".")
