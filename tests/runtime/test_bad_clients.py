"""The HTTP listener and clients that stall, hang up or send garbage."""

import asyncio
import json

import pytest
from aiohttp import web
from outpost_runtime.server.address import Address
from outpost_runtime.server.bad_clients import read_body
from outpost_runtime.server.http import HttpServer
from outpost_runtime.server.metrics import Metrics

_MOST_BYTES = 1 << 20


def _served(handler, client):
    """Run a client, given a stream to a listener that has a handler under ``POST /``."""

    async def run():
        server = HttpServer(Metrics([]), max_body_bytes=_MOST_BYTES)
        server.app.router.add_post("/", handler)
        port = await server.start(Address(host="127.0.0.1", port=0))
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
