"""``outpost.v1.Adapters``: adapters of served models, loaded and unloaded live."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from outpost.v1 import adapters_pb2, adapters_pb2_grpc

from outpost_runtime.models import Models
from outpost_runtime.server.waiting import end_of
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.model import TextModel

SERVICE = "outpost.v1.Adapters"

_THREADS = 4

Context = grpc.aio.ServicerContext[Any, Any]


class AdaptersService(adapters_pb2_grpc.AdaptersServicer):
    """Handlers of the service.

    Loading waits for a disk: in threads of their own, because the event loop's are few, and
    those who only ask would wait for them. Unloading waits for answers, in no thread.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="adapters")

    async def List(  # noqa: N802 - the wire's name
        self, request: adapters_pb2.ListAdaptersRequest, _context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        """Name what is loaded."""
        models = self._models.texts()
        if request.model:
            models = [self._models.get_as(request.model, TextModel, SERVICE)]
        adapters = [
            _described(model, model.adapters.get(name))
            for model in models
            for name in model.adapters.names()
        ]
        return adapters_pb2.ListAdaptersResponse(adapters=adapters)

    async def Load(  # noqa: N802 - the wire's name
        self, request: adapters_pb2.LoadAdapterRequest, _context: Context
    ) -> adapters_pb2.Adapter:
        """Load an adapter from the store."""
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._threads, self._models.load_adapter, request.name)
        return _described(model, model.adapters.get(request.name))

    async def Unload(  # noqa: N802 - the wire's name
        self, request: adapters_pb2.UnloadAdapterRequest, _context: Context
    ) -> adapters_pb2.UnloadAdapterResponse:
        """Unload an adapter."""
        loop = asyncio.get_running_loop()
        ended = await loop.run_in_executor(self._threads, self._models.unload_adapter, request.name)
        await end_of(ended)
        return adapters_pb2.UnloadAdapterResponse()


def _described(model: TextModel, shelved: ShelvedAdapter) -> adapters_pb2.Adapter:
    manifest = shelved.bundle.manifest
    return adapters_pb2.Adapter(
        name=manifest.name,
        version=manifest.version,
        model=model.bundle.manifest.name,
        digest=shelved.bundle.digest,
    )
