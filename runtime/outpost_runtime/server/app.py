"""A server: models behind gRPC, metrics behind HTTP, until it is told to stop."""

import asyncio
import ipaddress
import logging
import signal
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from inference import grpc_service_pb2_grpc
from outpost.v1 import adapters_pb2_grpc, embeddings_pb2_grpc, text_pb2_grpc

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.models import Models
from outpost_runtime.server import (
    adapters_service,
    embeddings_service,
    inference_service,
    text_service,
)
from outpost_runtime.server.metrics import Metrics
from outpost_runtime.server.status import StatusInterceptor
from outpost_runtime.text.model import TextModel

MAX_REQUEST_BYTES = 32 << 20
"""Largest request: 8 million float32 values. gRPC refuses larger ones while it reads them."""

MAX_CONCURRENT_CALLS = 512
"""Calls that may be under way at once; gRPC refuses others as RESOURCE_EXHAUSTED."""

_GRACE_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A host and a port; port 0 lets the system choose one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``host:port``.

        Raises:
            ConfigurationError: The text is something else.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:  # noqa: PLR2004
            raise ConfigurationError(
                f"'{text}' is not an address.", hint="Write HOST:PORT, such as 127.0.0.1:8001."
            )
        return cls(host=host.strip("[]"), port=int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Server:
    """The gRPC server and the metrics listener of one set of models.

    Args:
        models: Served from :meth:`start` on; closed by :meth:`stop`.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._metrics = Metrics()
        self._grpc = grpc.aio.server(
            interceptors=[StatusInterceptor(self._metrics)],
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                # Without this a second server would share the port in silence.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.aio.HealthServicer()

    async def start(self, address: Address, metrics_address: Address) -> int:
        """Begin to serve.

        Returns:
            The gRPC port.

        Raises:
            ConfigurationError: An address cannot be bound.
        """
        port = self._listen(address)
        self._http = self._metrics.listen(metrics_address.host, metrics_address.port)
        self._register()
        for model in self._models:
            manifest = model.bundle.manifest
            self._metrics.serves(
                manifest.name, manifest.version, manifest.target, model.bundle.digest
            )
            if isinstance(model, TextModel):
                self._metrics.watch(manifest.name, model.engine.state)
        await self._grpc.start()
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    @property
    def metrics_port(self) -> int:
        """The port of ``/metrics``."""
        return int(self._http.server_port)

    async def stop(self) -> None:
        """Refuse new calls, give running ones a few seconds, close the models."""
        await self._health.enter_graceful_shutdown()
        await self._grpc.stop(_GRACE_SECONDS)
        await asyncio.to_thread(self._models.close)
        await asyncio.to_thread(self._http.shutdown)
        self._http.server_close()

    @property
    def _services(self) -> tuple[str, ...]:
        return (
            "",
            text_service.SERVICE,
            embeddings_service.SERVICE,
            inference_service.SERVICE,
            adapters_service.SERVICE,
        )

    def _listen(self, address: Address) -> int:
        try:
            return self._grpc.add_insecure_port(str(address))
        except RuntimeError as error:
            raise ConfigurationError(
                f"The server cannot listen on {address}; is another one running there?",
                hint="Stop it, or choose another address with --address.",
            ) from error

    def _register(self) -> None:
        text = text_service.TextService(self._models, self._metrics)
        text_pb2_grpc.add_TextServicer_to_server(text, self._grpc)
        embeddings = embeddings_service.EmbeddingsService(self._models)
        embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(embeddings, self._grpc)
        inference = inference_service.InferenceService(self._models)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, self._grpc)
        adapters = adapters_service.AdaptersService(self._models)
        adapters_pb2_grpc.add_AdaptersServicer_to_server(adapters, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [name for name in self._services if name]
        names += ["grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc)


async def serve_until_signal(models: Models, address: Address, metrics_address: Address) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: An address cannot be bound.
    """
    server = Server(models)
    port = await server.start(address, metrics_address)
    names = ", ".join(sorted(model.bundle.manifest.name for model in models))
    _LOG.info("serving %s on %s", names, Address(host=address.host, port=port))
    _LOG.info("metrics on http://%s:%d/metrics", metrics_address.host, server.metrics_port)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    _LOG.info("stopping")
    await server.stop()
