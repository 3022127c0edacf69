"""``inference.GRPCInferenceService``: the Open Inference Protocol for tensor models."""

import asyncio
from typing import Any

import grpc
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc

from outpost_runtime import __version__
from outpost_runtime.embeddings import EmbeddingModel
from outpost_runtime.errors import NotFoundError, UnsupportedError
from outpost_runtime.models import Model, Models, TensorModel
from outpost_runtime.server.inference_codec import decode_inputs, encode_outputs, wanted_outputs
from outpost_runtime.tensors import TensorSpec

SERVICE = "inference.GRPCInferenceService"

Context = grpc.aio.ServicerContext[Any, Any]
TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


class InferenceService(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Handlers of the service; the method names are the wire's."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ServerLive(  # noqa: N802
        self,
        request: pb.ServerLiveRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.ServerLiveResponse:
        """Whoever answers is alive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self,
        request: pb.ServerReadyRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.ServerReadyResponse:
        """Ready when every active bundle of the store is served."""
        return pb.ServerReadyResponse(ready=not self._models.failures)

    async def ModelReady(  # noqa: N802
        self,
        request: pb.ModelReadyRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.ModelReadyResponse:
        """An unknown model is not ready, which is no error."""
        try:
            self._model(request.name, request.version)
        except NotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.ServerMetadataResponse:
        """Name and version of this server."""
        return pb.ServerMetadataResponse(name="outpost", version=__version__)

    async def ModelMetadata(  # noqa: N802
        self,
        request: pb.ModelMetadataRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.ModelMetadataResponse:
        """Signature of a tensor model."""
        model = self._tensor_model(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[model.bundle.manifest.version],
            platform="onnxruntime_onnx",
            inputs=[_metadata(spec) for spec in model.engine.inputs],
            outputs=[_metadata(spec) for spec in model.engine.outputs],
        )

    async def ModelInfer(  # noqa: N802
        self,
        request: pb.ModelInferRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.ModelInferResponse:
        """Run a tensor model once."""
        model = self._tensor_model(request.model_name, request.model_version)
        specs = model.engine.outputs
        wanted_outputs(request, specs)  # refuse before anything runs
        future = model.engine.submit(decode_inputs(request))
        try:
            outputs = await asyncio.wrap_future(future)
        finally:
            future.cancel()
        response = encode_outputs(request, outputs, specs)
        response.model_version = model.bundle.manifest.version
        return response

    def _model(self, name: str, version: str) -> Model:
        model = self._models.get(name)
        served = model.bundle.manifest.version
        if version not in ("", served):
            raise NotFoundError(f"The model '{name}' has no version '{version}'; {served} is here.")
        return model

    def _tensor_model(self, name: str, version: str) -> EmbeddingModel | TensorModel:
        model = self._model(name, version)
        if not isinstance(model, EmbeddingModel | TensorModel):
            raise UnsupportedError(
                f"The model '{name}' generates text; use outpost.v1.Text/Generate."
            )
        return model


def _metadata(spec: TensorSpec) -> TensorMetadata:
    shape = [-1 if size is None else size for size in spec.shape]
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=shape)
