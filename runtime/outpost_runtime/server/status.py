"""Errors to gRPC status codes: one table, and the one wrapper of handlers that ends calls with it.

Handlers raise :class:`OutpostError`; what they do not foresee reaches the client as
INTERNAL with an id, and the log as a traceback with the same id.
"""

import asyncio
import logging
import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from outpost_runtime.errors import (
    BundleError,
    BusyError,
    ConfigurationError,
    DeadlineError,
    ExecutionError,
    FetchError,
    InvalidInputError,
    NotFoundError,
    OutpostError,
    StoreError,
    TrustError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.server.metrics import Metrics

STATUS_CODES: dict[type[OutpostError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    StoreError: grpc.StatusCode.FAILED_PRECONDITION,
    TrustError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    FetchError: grpc.StatusCode.UNAVAILABLE,
    ExecutionError: grpc.StatusCode.INTERNAL,
}

_LONGEST_TEXT = 1024  # more does not fit into the headers that carry it

_REFLECTION = "/grpc.reflection."
_LOG = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Malformed:
    """Takes the place of a request whose bytes are not its message."""

    reason: str


class Handlers:
    """Wraps a server's handlers, once: every call ends with the right status, and is counted.

    Takes what generated ``add_…_to_server`` functions give a server, and lets it find handlers by
    name. Of methods that are registered one by one ``grpc.aio`` awaits the next call of each, all
    at once: with 30 of them a sixth of what the event loop does for a small call.

    Args:
        server: Has not been started.
    """

    def __init__(self, server: grpc.aio.Server, metrics: Metrics) -> None:
        self._server = server
        self._metrics = metrics

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Take nothing (gRPC's own name): the same handlers come by their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service's handlers (gRPC's own name)."""
        wrapped = {
            name: self._wrapped(f"/{service}/{name}", handler) for name, handler in handlers.items()
        }
        found_by_name = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((found_by_name,))

    def _wrapped(self, method: str, handler: Any) -> Any:
        if method.startswith(_REFLECTION):
            return handler  # which is its own
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )

    def _unary(self, method: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def wrapped(request: Any, context: Context) -> Any:
            try:
                response = await call(_well_formed(request), context)
            except asyncio.CancelledError:
                self._metrics.count(method, grpc.StatusCode.CANCELLED)
                raise
            except Exception as error:  # noqa: BLE001 - every error gets its status here
                await self._abort(method, context, error)
            self._metrics.count(method, grpc.StatusCode.OK)
            return response

        return wrapped

    def _stream(
        self, method: str, call: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., Any]:
        async def wrapped(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with aclosing(call(_well_formed(request), context)) as responses:
                    async for response in responses:
                        yield response
            except (asyncio.CancelledError, GeneratorExit):
                self._metrics.count(method, grpc.StatusCode.CANCELLED)
                raise
            except Exception as error:  # noqa: BLE001 - every error gets its status here
                await self._abort(method, context, error)
            self._metrics.count(method, grpc.StatusCode.OK)

        return wrapped

    async def _abort(self, method: str, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        code, text = status_of(error)
        self._metrics.count(method, code)
        await context.abort(code, text, _trailing_metadata(error))


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status code and the sentence for a client; log what is our own fault."""
    if isinstance(error, OutpostError):
        return STATUS_CODES[type(error)], str(error)[:_LONGEST_TEXT]
    incident = secrets.token_hex(4)
    _LOG.error("incident %s", incident, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"The server made a mistake; its log has incident {incident}."


def _trailing_metadata(error: Exception) -> tuple[tuple[str, str], ...]:
    # gRPC's clients obey this hint by themselves when their retry policy allows it (gRFC A6).
    if isinstance(error, BusyError) and error.retry_after is not None:
        return (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    return ()


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    # A failing deserializer would end the call as INTERNAL without a word.
    assert deserialize is not None  # noqa: S101 - generated code always sets it

    def wrapped(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError, ValueError) as error:
            return _Malformed(reason=str(error))

    return wrapped


def _well_formed(request: Any) -> Any:
    if isinstance(request, AsyncIterator):
        return _each_well_formed(request)
    if isinstance(request, _Malformed):
        raise InvalidInputError(
            f"The request is not a valid message: {request.reason}",
            hint="Strings must be UTF-8.",
        )
    return request


async def _each_well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)
