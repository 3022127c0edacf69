"""A client of the gRPC API, for commands and examples."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outpost.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    embeddings_pb2,
    embeddings_pb2_grpc,
    text_pb2,
    text_pb2_grpc,
)

from outpost_runtime.address import Address
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    NotFoundError,
    OutpostError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.pem import believe, show

DEFAULT_ADDRESS = "127.0.0.1:8001"

_MAX_RESPONSE_BYTES = 64 << 20
_HEALTH_SECONDS = 2.0
_ERRORS: dict[grpc.StatusCode, type[OutpostError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInputError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BusyError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.FAILED_PRECONDITION: BundleError,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTls:
    """How a client knows a server, and shows itself.

    Attributes:
        authorities: PEM; the server's own certificate, or of who vouches for it.
        name: A name in its certificate, where its address is none.
        shown: The client's own certificate and its key, in PEM, where the server asks for one.

    Raises:
        ConfigurationError: One of them cannot be used: gRPC would say nothing, or end the process.
    """

    authorities: bytes
    name: str | None = None
    shown: tuple[bytes, bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        believe(context, self.authorities)
        if self.shown is not None:
            show(context, *self.shown)


class Client:
    """A connection to a server; a context manager.

    Args:
        address: ``host:port`` of the server's gRPC listener.
        tls: How the server is known; None speaks in the clear.

    Raises:
        ConfigurationError: The address is none.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, tls: ClientTls | None = None) -> None:
        self._address = Address.parse(address)
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES)]
        if tls is None:
            self._channel = grpc.insecure_channel(str(self._address), options)
        else:
            if tls.name is not None:
                options.append(("grpc.ssl_target_name_override", tls.name))
            certificate, key = tls.shown or (None, None)
            credentials = grpc.ssl_channel_credentials(tls.authorities, key, certificate)
            self._channel = grpc.secure_channel(str(self._address), credentials, options)
        self._text = text_pb2_grpc.TextStub(self._channel)
        self._embeddings = embeddings_pb2_grpc.EmbeddingsStub(self._channel)
        self._adapters = adapters_pb2_grpc.AdaptersStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def generate(self, request: text_pb2.GenerateRequest) -> Iterator[text_pb2.GenerateResponse]:
        """Yield the pieces of an answer and its summary; closing the iterator cancels the call.

        Raises:
            OutpostError: What the server said.
        """
        call = self._text.Generate(request)
        try:
            with self._errors():
                yield from call
        finally:
            call.cancel()

    def ask(self, model: str, question: str) -> str:
        """Return a whole answer to one question, greedily, as a chat.

        Raises:
            OutpostError: What the server said.
        """
        request = text_pb2.GenerateRequest(model=model)
        request.chat.messages.add(role="user", content=question)
        request.parameters.temperature = 0
        return "".join(response.piece.text for response in self.generate(request))

    def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per text.

        Raises:
            OutpostError: What the server said.
        """
        try:
            request = embeddings_pb2.EmbedRequest(model=model, texts=texts)
        except (ValueError, UnicodeError) as error:
            raise InvalidInputError(f"A text cannot be sent: {error}.") from error
        with self._errors():
            response = self._embeddings.Embed(request)
        return [list(embedding.values) for embedding in response.embeddings]

    def adapters(self) -> list[adapters_pb2.Adapter]:
        """Return the loaded adapters of all models.

        Raises:
            OutpostError: What the server said.
        """
        with self._errors():
            return list(self._adapters.List(adapters_pb2.ListAdaptersRequest()).adapters)

    def load_adapter(self, name: str) -> adapters_pb2.Adapter:
        """Load the adapter that is active in the server's store under a name.

        Raises:
            OutpostError: What the server said.
        """
        with self._errors():
            return self._adapters.Load(adapters_pb2.LoadAdapterRequest(name=name))

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; returns when its running answers have ended.

        Raises:
            OutpostError: What the server said.
        """
        with self._errors():
            self._adapters.Unload(adapters_pb2.UnloadAdapterRequest(name=name))

    def is_serving(self) -> bool:
        """Whether a server answers and is healthy."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details())
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
                raise self._not_reached(details.lower()) from error
            raise _ERRORS.get(code, ExecutionError)(details) from error

    def _not_reached(self, details: str) -> UnavailableError:
        if "handshake" in details or "verification" in details:
            return UnavailableError(
                f"What is on {self._address} is not the server that was named, or speaks no TLS.",
                hint="Compare --tls-ca and --tls-name with its certificate, or leave both out.",
            )
        if "closed" in details or "reset" in details:
            return UnavailableError(
                f"The server on {self._address} hangs up.",
                hint="It may speak TLS (--tls-ca), or ask who you are (--tls-certificate).",
            )
        return UnavailableError(
            f"There is no server on {self._address}.",
            hint="Start one with 'outpost serve', or name another with --address.",
        )
