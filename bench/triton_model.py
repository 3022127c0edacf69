"""A bundle's graph as a model of Triton's Python backend; copied into its model repository.

Requests that Triton hands over together are run as one batch, shorter rows padded with zeros
(the attention mask leaves them out). Parameters of the configuration name graph and threads.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions


class TritonPythonModel:
    """ONNX Runtime behind Triton; the name is the backend's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph as Outpost does."""
        parameters = json.loads(args["model_config"])["parameters"]
        options = SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        graph = parameters["graph"]["string_value"]
        self._session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests at once."""
        feeds = {name: _stacked([_array(each, name) for each in requests]) for name in self._inputs}
        rows = np.cumsum([_array(each, self._inputs[0]).shape[0] for each in requests])[:-1]
        values = [np.split(value, rows) for value in self._session.run(self._outputs, feeds)]
        return [self._response(parts) for parts in zip(*values, strict=True)]

    def _response(self, parts: tuple[NDArray[Any], ...]) -> Any:
        pairs = zip(self._outputs, parts, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, part) for name, part in pairs])


def _array(request: Any, name: str) -> NDArray[np.int64]:
    array: NDArray[np.int64] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return array


def _stacked(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(arrays) == 1:
        return arrays[0]
    length = max(array.shape[1] for array in arrays)
    return np.concatenate(
        [np.pad(array, ((0, 0), (0, length - array.shape[1]))) for array in arrays]
    )
