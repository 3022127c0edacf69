"""Unary gRPC calls on a bare HTTP/2 connection (RFC 9113), as cheap as Python can make them.

A client of grpcio needs as much of a core per call as a server of grpcio, so on two cores it
would be measured with every server. This one sends frames that were encoded once and looks at
little more than the ends of streams. It knows just enough for a server on this machine: headers
are sent as literals (RFC 7541, 6.2.2) and those that come back are not decoded, so all that it
knows of a failed call is that no message came.
"""

import socket
import struct
from collections.abc import Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_FIRST_WINDOW, _LARGE_WINDOW, _REFILL = 65_535, 1 << 30, 1 << 24
_MOST_IN_A_FRAME = 16_384
_FRAME_HEAD, _RECEIVED = 9, 1 << 18


class CallError(Exception):
    """A call ended without a message, or the connection did."""


class Connection:
    """A connection on which many calls of one method run side by side.

    Args:
        address: ``host:port``.
        method: Such as ``/inference.GRPCInferenceService/ModelInfer``.

    Raises:
        OSError: Nobody listens there.
    """

    def __init__(self, address: str, method: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = _header_block(method, address)
        self._stream = -1
        self._pieces: dict[int, bytes] = {}
        self._window, self._unrefilled = _FIRST_WINDOW, 0
        self._rest = b""
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGE_WINDOW)
        more = struct.pack(">I", _LARGE_WINDOW)
        opening = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, more)
        self._socket.sendall(_PREFACE + opening)

    def call(self, message: bytes) -> int:
        """Send a request and return the number of its stream."""
        self._stream += 2
        self._pieces[self._stream] = b""
        body = b"\0" + struct.pack(">I", len(message)) + message
        if len(body) > _MOST_IN_A_FRAME:
            raise AssertionError("requests of several frames are not needed here")
        while self._window < len(body):
            if self._receive():
                raise AssertionError("a call ended while its caller waited to send")
        self._window -= len(body)
        frames = _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
        self._socket.sendall(frames + _frame(_DATA, _END_STREAM, self._stream, body))
        return self._stream

    def ended(self) -> list[tuple[int, bytes]]:
        """Wait for calls to end; return their streams and messages, at least one.

        Raises:
            CallError: One of them failed.
        """
        while True:
            if found := self._receive():
                return found

    def close(self) -> None:
        """End the connection, and with it what is under way."""
        self._socket.close()

    def _receive(self) -> list[tuple[int, bytes]]:
        found = []
        for kind, flags, stream, payload in self._frames():
            if kind == _DATA:
                self._pieces[stream] += payload
                self._refill(len(payload))
            elif kind != _HEADERS:
                self._manage(kind, flags, stream, payload)
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                found.append((stream, _message(self._pieces.pop(stream))))
        return found

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        received = self._socket.recv(_RECEIVED)
        if not received:
            raise CallError("The server closed the connection.")
        data, at = self._rest + received, 0
        while len(data) - at >= _FRAME_HEAD:
            length, kind = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
            start = at + _FRAME_HEAD
            if len(data) < start + length:
                break
            stream = int.from_bytes(data[at + 5 : start], "big")
            yield kind, data[at + 4], stream, data[start : start + length]
            at = start + length
        self._rest = data[at:]

    def _manage(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_RESET, _GOAWAY):
            raise CallError(f"The server ended a stream or the connection: {payload!r}")
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            answer = payload if kind == _PING else b""
            self._socket.sendall(_frame(kind, _ACK, 0, answer))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")

    def _refill(self, size: int) -> None:
        self._unrefilled += size
        if self._unrefilled > _REFILL:
            more = struct.pack(">I", self._unrefilled)
            self._socket.sendall(_frame(_WINDOW_UPDATE, 0, 0, more))
            self._unrefilled = 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def _header_block(method: str, authority: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(_literal(name) + _literal(value, b"") for name, value in headers.items())


def _literal(text: str, first: bytes = b"\0") -> bytes:
    size = len(text)
    if size >= 0x7F:  # noqa: PLR2004 - longer ones are encoded in several bytes
        raise AssertionError("a header does not fit")
    return first + bytes([size]) + text.encode("ascii")


def _message(pieces: bytes) -> bytes:
    if not pieces:
        raise CallError("A call ended without a message.")
    return pieces[5:]
