"""The HTTP listener: the Open Inference Protocol and ``/metrics``, beside gRPC in one event loop.

Rules:

1. A page in a browser on this machine is no client: a request with another Origin than
   this server's, or (without TLS, while only this machine can reach it) with a Host that is no
   name of this machine, is refused. So no web site can use the models of who visits it.
2. Bodies are bounded, packed ones by their unpacked size, and come in bounded time; requests at
   once are bounded, too, but for those that ask whether the server lives and what it counts.
3. An error is ``{"error": "…"}``, with the status that belongs to it; only what is no HTTP is
   answered by aiohttp itself, in plain text.
4. What a client does wrong is not logged.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc
from aiohttp import ClientConnectionResetError, web

from outpost_runtime.address import Address
from outpost_runtime.errors import BusyError, ConfigurationError
from outpost_runtime.server.bad_clients import listener_log
from outpost_runtime.server.metrics import Metrics
from outpost_runtime.server.status import status_of
from outpost_runtime.server.tls import Tls

MOST_REQUESTS = 256
"""Requests that may be under way at once; others are refused."""

_UNCOUNTED = ("/metrics", "/v2/health/live", "/v2/health/ready")

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.INTERNAL: 500,
}
_PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"
_SHUTDOWN_SECONDS = 5.0
_LOG = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """The listener; paths are added to :attr:`app` before :meth:`start`."""

    def __init__(self, metrics: Metrics, *, max_body_bytes: int) -> None:
        self._metrics = metrics
        self._requests = 0
        self._plain: Address | None = None
        self.app = web.Application(
            client_max_size=max_body_bytes, middlewares=[self._answer_errors]
        )
        self.app.router.add_get("/metrics", self._page)
        self._runner = web.AppRunner(
            self.app,
            logger=listener_log(),
            access_log=None,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            handle_signals=False,
            handler_cancellation=True,  # a client that hangs up stops its work
        )

    async def start(self, address: Address, tls: Tls | None = None) -> Address:
        """Begin to listen; again for another address.

        Returns:
            The address, with the port that the system chose if it was 0.

        Raises:
            ConfigurationError: The address cannot be bound.
        """
        if tls is None:
            self._plain = address
        if self._runner.server is None:
            await self._runner.setup()
        before = len(self._runner.addresses)
        site = web.TCPSite(
            self._runner, address.host, address.port, ssl_context=tls.http() if tls else None
        )
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"HTTP cannot listen on {address}: {error.strerror or error}.",
                hint=f"Choose another address with --{'tls-' if tls else ''}http-address.",
            ) from error
        return replace(address, port=self._runner.addresses[before][1])

    async def stop(self) -> None:
        """Refuse new requests, give running ones a few seconds."""
        await self._runner.cleanup()

    async def _page(self, _: web.Request) -> web.Response:
        page = await asyncio.to_thread(self._metrics.page)
        return web.Response(body=page, headers={"Content-Type": _PROMETHEUS})

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        counted = request.path not in _UNCOUNTED
        self._requests += counted
        try:
            self._check_origin(request)
            if counted and self._requests > MOST_REQUESTS:  # before any body is read
                return _refusal(429, "Too many requests are under way.")
            return await handler(request)
        except (asyncio.CancelledError, ClientConnectionResetError):  # the client hung up
            raise
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        except web.RequestPayloadError:
            return _refusal(400, "The body is not packed as its Content-Encoding says.")
        except Exception as error:  # noqa: BLE001 - every error gets its status here
            code, text = status_of(error)
            response = _refusal(_STATUSES[code], text)
            if isinstance(error, BusyError) and error.retry_after is not None:
                response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
            return response
        finally:
            self._requests -= counted

    def _check_origin(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        scheme, _, place = (origin or "").partition("://")
        if origin is not None and (place != host or (request.secure and scheme != "https")):
            raise web.HTTPForbidden(reason="Pages of other origins may not use this server")
        if request.secure:  # a browser has compared the name with the certificate
            return
        assert self._plain is not None  # noqa: S101 - it listens
        if self._plain.is_loopback and not Address.of_host(host).is_loopback:
            raise web.HTTPForbidden(reason="This server answers to names of this machine only")


def _refusal(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
