"""A bundle's graph as a model of MLServer; runs in MLServer's environment.

The session runs on the event loop: every run takes all threads anyway, and the hop to another
thread costs more than the classifier.
"""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnxruntime import InferenceSession, SessionOptions


class OnnxModel(MLModel):  # type: ignore[misc]  # MLServer is not in this environment
    """ONNX Runtime behind MLServer; ``uri`` is the graph."""

    async def load(self) -> bool:
        """Open the graph as Outpost does."""
        options = SessionOptions()
        options.intra_op_num_threads = self.settings.parameters.extra["threads"]
        self._session = InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._names = [node.name for node in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a request, or several that MLServer has made one of."""
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        values = self._session.run(self._names, inputs)
        pairs = zip(self._names, values, strict=True)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in pairs]
        return InferenceResponse(model_name=self.name, outputs=outputs)
