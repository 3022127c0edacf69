"""``inference.GRPCInferenceService``: the protocol over gRPC. Messages in, messages out."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc

from outpost_runtime.address import host_of_peer
from outpost_runtime.errors import UnsupportedError
from outpost_runtime.server.inference import wire
from outpost_runtime.server.inference.core import (
    NO_CUDA,
    NO_LOG_SETTINGS,
    NO_TRACES,
    Inference,
)
from outpost_runtime.server.inference.stream import answered
from outpost_runtime.server.waiting import aside_if_large

SERVICE = "inference.GRPCInferenceService"

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Handlers of the service; the method names are the wire's."""

    # ruff: noqa: N802, ARG002, D102 - names and signatures are the wire's, what they do is core's

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._inference.ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        ready = self._inference.is_model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return self._inference.server()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        return self._inference.metadata(request.name, request.version)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        config = self._inference.configuration(request.name, request.version)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        return self._inference.statistics(request.name, request.version)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        regions = self._inference.regions_of(_host(context))
        asked = await aside_if_large(wire.size_of(request), lambda: wire.decode(request, regions))
        response = await self._inference.infer(asked, context.time_remaining())
        return await aside_if_large(response.weight, lambda: wire.encode(response))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        stream = answered(
            self._inference,
            request_iterator,
            self._inference.regions_of(_host(context)),
            context.time_remaining(),
        )
        async with aclosing(stream) as answers:
            async for answer in answers:
                yield answer

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        return await self._inference.index(request.repository_name, ready_only=request.ready)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        await self._inference.load(
            request.repository_name, request.model_name, parameters=bool(request.parameters)
        )
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._inference.unload(request.repository_name, request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        return self._inference.shared_memory(request.name, _host(context))

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._inference.regions_of(_host(context)).register(
            request.name, request.key, request.offset, request.byte_size
        )
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._inference.regions_of(_host(context)).unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> NoReturn:
        raise UnsupportedError(NO_CUDA)

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> NoReturn:
        raise UnsupportedError(NO_CUDA)

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> NoReturn:
        raise UnsupportedError(NO_CUDA)

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> NoReturn:
        raise UnsupportedError(NO_TRACES)

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> NoReturn:
        raise UnsupportedError(NO_LOG_SETTINGS)


def _host(context: Context) -> str:
    return host_of_peer(context.peer())
