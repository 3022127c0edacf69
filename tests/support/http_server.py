"""A real HTTP server that behaves, unless it was told to misbehave.

``server.faults`` holds what happens to the next requests, one each; after that every request is
answered as RFC 9110 has it. ``server.always`` is the fault of every request that has none.
"""

import contextlib
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Self

MODIFIED = 1_700_000_000
CHUNK = 16 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        """First byte that was asked for; 0 without a range."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


class Exchange(http.server.BaseHTTPRequestHandler):
    """One connection; a fault is called with it and may write whatever it likes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "HttpServer"
    request_seen: Request
    content: bytes

    def do_GET(self) -> None:
        path = self.path.lstrip("/").partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(path=self.path.lstrip("/"), headers=headers)
        self.server.requests.append(self.request_seen)
        self.content = self.server.files.get(path, b"")
        fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        if fault is not None:
            fault(self)
        elif path not in self.server.files:
            self.reply(404, b"not here")
        else:
            self.behave()

    @property
    def start(self) -> int:
        return self.request_seen.start

    @property
    def etag(self) -> str:
        return f'"{self.server.edition}-{len(self.content)}"'

    def behave(self) -> None:
        size, start = len(self.content), self.start
        condition = self.request_seen.headers.get("if-range", self.etag)
        if "range" not in self.request_seen.headers or condition != self.etag:
            self.reply(200, self.content)
        elif start >= size:
            self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
        else:
            self.reply(206, self.content[start:], {"Content-Range": self.range_of(start)})

    def range_of(self, start: int, total: int | None = None) -> str:
        size = len(self.content)
        return f"bytes {start}-{size - 1}/{size if total is None else total}"

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Send an answer; ``length`` is what it says of the body where that is not the truth."""
        self.head(status, headers, length=len(body) if length is None else length)
        self.body(body)
        if length is not None:
            self.close_connection = True

    def head(
        self, status: int, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        standard = {"ETag": self.etag, "Last-Modified": formatdate(MODIFIED, usegmt=True)}
        if length is not None:
            standard["Content-Length"] = str(length)
        for name, value in (standard | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        for begin in range(0, len(data), CHUNK):
            self.wfile.write(data[begin : begin + CHUNK])
            self.server.sent += len(data[begin : begin + CHUNK])
            if self.server.pause:
                time.sleep(self.server.pause)

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def setup(self) -> None:
        if self.server.send_buffer:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.server.send_buffer)
        super().setup()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client hung up, as it should when it is treated like this
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


Fault = Callable[[Exchange], None]


class HttpServer(http.server.ThreadingHTTPServer):
    """The server; used as a context it listens on a port of its own.

    Args:
        tls: Certificate for HTTPS, or None.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.files = files
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.requests: list[Request] = []
        self.edition = "first"
        self.sent = 0
        self.pause = 0.0
        self.send_buffer = 0
        self.scheme = "http"
        self.ended = threading.Event()
        if tls is not None:
            self.scheme = "https"
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that does not trust our certificate hangs up


def ignores_range(exchange: Exchange) -> None:
    exchange.reply(200, exchange.content)


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> Fault:
    return lambda exchange: exchange.reply(code, body, headers)


def cut_after(count: int) -> Fault:
    """The right headers, so many bytes of the body, and then nothing."""

    def fault(exchange: Exchange) -> None:
        rest = exchange.content[exchange.start :]
        code = 206 if exchange.start else 200
        headers = {"Content-Range": exchange.range_of(exchange.start)} if exchange.start else {}
        exchange.reply(code, rest[:count], headers, length=len(rest))

    return fault


def with_headers(headers: dict[str, str], code: int = 206) -> Fault:
    """The right body under headers of ours."""
    return lambda exchange: exchange.reply(code, exchange.content[exchange.start :], headers)


def shifted(by: int) -> Fault:
    """A part that begins elsewhere, and says so."""

    def fault(exchange: Exchange) -> None:
        start = max(0, exchange.start + by)
        headers = {"Content-Range": exchange.range_of(start)}
        exchange.reply(206, exchange.content[start:], headers)

    return fault


def repeated_range(exchange: Exchange) -> None:
    """Two Content-Range headers."""
    exchange.send_response(206)
    rest = exchange.content[exchange.start :]
    for _ in range(2):
        exchange.send_header("Content-Range", exchange.range_of(exchange.start))
    exchange.send_header("Content-Length", str(len(rest)))
    exchange.end_headers()
    exchange.body(rest)


def chunked(exchange: Exchange) -> None:
    """The whole file without saying how long it is."""
    exchange.head(200, {"Transfer-Encoding": "chunked"})
    for begin in range(0, len(exchange.content), 1000):
        piece = exchange.content[begin : begin + 1000]
        exchange.raw(b"%x\r\n%b\r\n" % (len(piece), piece))
    exchange.raw(b"0\r\n\r\n")


def until_closed(exchange: Exchange) -> None:
    """The whole file without length: it ends with the connection."""
    exchange.head(200, {"Connection": "close"})
    exchange.raw(exchange.content)
    exchange.close_connection = True


def redirected(location: str, code: int = 302) -> Fault:
    return lambda exchange: exchange.reply(code, b"elsewhere", {"Location": location})


def then_endless(head: bytes, item: bytes, pause: float = 0.0) -> Fault:
    """Bytes, and then others again and again, until the client hangs up."""

    def fault(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.raw(head)
        while not exchange.server.ended.wait(pause):
            exchange.raw(item)

    return fault


def silent(exchange: Exchange) -> None:
    exchange.close_connection = True
    exchange.server.ended.wait()


def raw(data: bytes) -> Fault:
    """Bytes instead of an answer."""

    def fault(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.raw(data)

    return fault
