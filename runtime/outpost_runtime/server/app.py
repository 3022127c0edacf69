"""A server: models behind gRPC and HTTP, until it is told to stop."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from inference import grpc_service_pb2_grpc
from outpost.v1 import adapters_pb2_grpc, embeddings_pb2_grpc, text_pb2_grpc

from outpost_runtime.address import Address
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.models import Models, names_of
from outpost_runtime.server import adapters_service, embeddings_service, text_service
from outpost_runtime.server.generation import Generation
from outpost_runtime.server.http import HttpServer
from outpost_runtime.server.inference import service as inference_service
from outpost_runtime.server.inference.core import Inference
from outpost_runtime.server.inference.rest import InferenceRoutes
from outpost_runtime.server.metrics import Metrics
from outpost_runtime.server.service_manager import ServiceManager
from outpost_runtime.server.status import Handlers
from outpost_runtime.server.tls import Tls
from outpost_runtime.server.waiting import Crossing

MAX_REQUEST_BYTES = 32 << 20
"""Largest request: 8 million float32 values. gRPC refuses larger ones while it reads them."""

MAX_CONCURRENT_CALLS = 512
"""Calls that may be under way at once; gRPC refuses others as RESOURCE_EXHAUSTED."""

_GRACE_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsDoors:
    """Where a server listens with TLS; None for nowhere."""

    tls: Tls
    grpc: Address | None = None
    http: Address | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Doors:
    """Where a server listens: in the clear, and where it is told to, with TLS beside it."""

    grpc: Address
    http: Address
    secured: TlsDoors | None = None


class Server:
    """The gRPC and HTTP listeners of one set of models.

    Args:
        models: Served from :meth:`start` on; closed by :meth:`stop`.

    It is made on the event loop that serves.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._metrics = Metrics(models)
        self._crossing = Crossing(asyncio.get_running_loop())
        self._generation = Generation(models, self._metrics, self._crossing)
        self._inference = Inference(models, self._generation, self._crossing)
        self._grpc = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                # Without this a second server would share the port in silence.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.aio.HealthServicer()
        self._http = HttpServer(self._metrics, max_body_bytes=MAX_REQUEST_BYTES)
        InferenceRoutes(self._inference).add_to(self._http.app)

    async def start(self, doors: Doors) -> Doors:
        """Begin to serve.

        Returns:
            Where, with the ports that the system chose.

        Raises:
            ConfigurationError: An address cannot be bound.
        """
        opened = Doors(
            grpc=self._listen(doors.grpc),
            http=await self._http.start(doors.http),
            secured=doors.secured and await self._open(doors.secured),
        )
        self._register()
        await self._grpc.start()
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return opened

    async def stop(self) -> None:
        """Refuse new calls, give running ones a few seconds, close the models."""
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(self._grpc.stop(_GRACE_SECONDS), self._http.stop())
        await asyncio.to_thread(self._models.close)
        self._generation.close()
        self._inference.close()

    @property
    def _services(self) -> tuple[str, ...]:
        return (
            "",
            text_service.SERVICE,
            embeddings_service.SERVICE,
            inference_service.SERVICE,
            adapters_service.SERVICE,
        )

    async def _open(self, doors: TlsDoors) -> TlsDoors:
        return replace(
            doors,
            grpc=doors.grpc and self._listen(doors.grpc, doors.tls),
            http=doors.http and await self._http.start(doors.http, doors.tls),
        )

    def _listen(self, address: Address, tls: Tls | None = None) -> Address:
        try:
            if tls is None:
                port = self._grpc.add_insecure_port(str(address))
            else:
                port = self._grpc.add_secure_port(str(address), tls.grpc())
        except RuntimeError as error:
            raise ConfigurationError(
                f"The server cannot listen on {address}; is another one running there?",
                hint=f"Stop it, or choose another address with --{'tls-' if tls else ''}address.",
            ) from error
        return replace(address, port=port)

    def _register(self) -> None:
        handlers: Any = Handlers(self._grpc, self._metrics)  # what these functions use of a server
        text = text_service.TextService(self._generation)
        text_pb2_grpc.add_TextServicer_to_server(text, handlers)
        embeddings = embeddings_service.EmbeddingsService(self._models, self._crossing)
        embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(embeddings, handlers)
        inference = inference_service.InferenceService(self._inference)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, handlers)
        adapters = adapters_service.AdaptersService(self._models)
        adapters_pb2_grpc.add_AdaptersServicer_to_server(adapters, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, handlers)
        names = [name for name in self._services if name]
        names += ["grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflected = reflection.aio.ReflectionServicer(names)
        add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add(reflected, handlers)  # type: ignore[no-untyped-call]  # its stubs leave it out


async def serve_until_signal(
    models: Models,
    doors: Doors,
    before_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        before_stopping: Called then, while everything is still served.

    Raises:
        ConfigurationError: An address cannot be bound.
    """
    server = Server(models)
    opened = await server.start(doors)
    _LOG.info("serving %s on %s", names_of(models), opened.grpc)
    if opened.secured and opened.secured.grpc:
        _LOG.info("TLS for gRPC on %s", opened.secured.grpc)
    if opened.secured and opened.secured.http:
        _LOG.info("TLS for HTTP on https://%s", opened.secured.http)
    _LOG.info("HTTP on http://%s, metrics on http://%s/metrics", opened.http, opened.http)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with ServiceManager(os.environ).serving():
        await stop.wait()
    _LOG.info("stopping")
    await asyncio.to_thread(before_stopping)
    await server.stop()
