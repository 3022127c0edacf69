"""The HTTP listener and clients that stall, hang up or send garbage."""

import asyncio
import json

import pytest
from aiohttp import web
from outpost_runtime.address import Address
from outpost_runtime.server.bad_clients import read_body
from outpost_runtime.server.http import HttpServer
from outpost_runtime.server.metrics import Metrics

_MOST_BYTES = 1 << 20


def _served(handler, client):
    """Run a client, given a stream to a listener that has a handler under ``POST /``."""

    async def run():
        server = HttpServer(Metrics([]), max_body_bytes=_MOST_BYTES)
        server.app.router.add_post("/", handler)
        port = (await server.start(Address(host="127.0.0.1", port=0))).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await asyncio.wait_for(client(reader, writer), 30)
        finally:
            writer.close()
            await server.stop()

    return asyncio.run(run())


def _head(length, *lines):
    return "\r\n".join(
        ["POST / HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *lines, "\r\n"]
    ).encode()


async def _answer(reader):
    status = int((await reader.readline()).split()[1])
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return status, await reader.readexactly(length)


def _reading(**limits):
    async def handler(request):
        return web.json_response({"size": len(await read_body(request, **limits))})

    return handler


def test_a_body_of_which_nothing_comes_is_given_up():
    async def client(reader, writer):
        writer.write(_head(50) + b"x")
        return await _answer(reader)

    status, body = _served(_reading(silent=0.2), client)
    assert status == 408
    assert json.loads(body) == {"error": "The body did not come in time"}


@pytest.mark.parametrize(("whole", "status"), [(30.0, 200), (0.5, 408)])
def test_a_body_may_drip_but_not_for_ever(whole, status):
    async def client(reader, writer):
        writer.write(_head(8))
        for _ in range(8):
            writer.write(b"x")
            await asyncio.sleep(0.15)
        return await _answer(reader)

    assert _served(_reading(silent=1.0, whole=whole), client)[0] == status


def test_a_client_that_hangs_up_is_no_incident(caplog):
    async def handler(request):
        stream = web.StreamResponse()
        await stream.prepare(request)
        request.transport.close()  # as the event loop does when the client's end is gone
        await stream.write(b"x")
        return stream

    async def client(reader, writer):
        writer.write(_head(0))
        await reader.read()

    _served(handler, client)
    assert caplog.records == []


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        _head(3, "Content-Encoding: gzip") + b"abc",
        _head(3, "Content-Encoding: br") + b"abc",
        _head(3, "Content-Encoding: zstd") + b"abc",
        _head(0, "X: " + "y" * 9000),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no-http", "no-url", "no-gzip", "no-brotli", "no-zstd", "long-header", "no-chunk"],
)
def test_garbage_is_answered_and_not_logged(sent, caplog):
    async def client(reader, writer):
        writer.write(sent)
        return await reader.readline()

    assert _served(_reading(), client).startswith(b"HTTP/1.")
    assert caplog.records == []


def test_a_mistake_of_ours_is_logged_as_before(caplog):
    async def handler(_):
        return None

    async def client(reader, writer):
        writer.write(_head(0))
        return await reader.readline()

    assert b" 500 " in _served(handler, client)
    assert "Missing return statement" in caplog.text
