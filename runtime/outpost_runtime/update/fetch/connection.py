"""urllib3's connections with a :class:`Meter` on every read from the socket.

A time-out of urllib3 bounds one read, so a server that sends one byte of a header every
few seconds holds a client for ever. Here status lines, headers, chunk sizes, bodies and trailers
all pass the same meter.
"""

import io
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection

from outpost_runtime import __version__
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.fetch.meter import Meter, Patience

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

USER_AGENT = f"outpost/{__version__}"
_BUFFER = 64 << 10
_ORIGINS = 4


def metered_pool(
    meter: Meter, patience: Patience, context: ssl.SSLContext | None, window: int | None
) -> PoolManager:
    """Make a pool of connections that all count on one meter: for one request at a time.

    Args:
        context: For TLS; None for urllib3's own, with the system's certificates.
        window: Bytes that the system may hold for us unread, or None for what it thinks best.
    """
    # It logs every URL at DEBUG, and so a signed URL's secret.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
    options = list(HTTPConnection.default_socket_options)
    if window is not None:
        options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, window))

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _metered(self.sock, meter)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _metered(self.sock, meter)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = PoolManager(
        num_pools=_ORIGINS,
        maxsize=1,
        retries=False,
        timeout=Timeout(connect=patience.connect_seconds, read=patience.silence_seconds),
        ssl_context=context,
        socket_options=options,
    )
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return what TLS connections are checked with.

    Args:
        ca_bundle: Certificates (PEM) that count instead of the system's.

    Raises:
        ConfigurationError: The bundle cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"The certificates in {ca_bundle} cannot be read: {error.strerror or error}.",
            hint="Name a file of PEM certificates.",
        ) from error


def _metered(sock: socket.socket, meter: Meter) -> socket.socket:
    return cast("socket.socket", _MeteredSocket(sock, meter))  # it is one in all that is used


class _MeteredSocket:
    """A socket whose files count on a meter; everything else is the socket's."""

    def __init__(self, sock: socket.socket, meter: Meter) -> None:
        self._socket = sock
        self._meter = meter

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb", mode  # noqa: S101 - http.client only reads through a file
        raw = self._socket.makefile("rb", buffering=0)
        return io.BufferedReader(_MeteredReads(raw, self._meter), _BUFFER)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _MeteredReads(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        begin = time.monotonic()
        count = self._raw.readinto(buffer)
        self._meter.add(count or 0, time.monotonic() - begin)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
