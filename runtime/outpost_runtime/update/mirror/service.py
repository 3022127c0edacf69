"""The mirror's HTTP service: repository paths, and nothing else.

Rules:

1. A path is served only if a repository can have it; every other request is 404 and asks nobody.
2. What its name says the digest of is kept on disk, checked when it comes and whenever it is
   read. The rest (metadata, wrapped keys) stays in memory for seconds: boxes must see what is new.
3. Who asks for a file that is on its way reads along. One whose digest turns out wrong is cut
   off before its end, and not kept.
4. Requests and upstream connections are bounded; others are refused, with a time to come back.
   An answer is a request until its last byte has gone, and has its time.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from outpost_runtime.address import Address
from outpost_runtime.errors import (
    BusyError,
    ConfigurationError,
    NotFoundError,
    OutpostError,
)
from outpost_runtime.server.bad_clients import listener_log
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.paths import RepositoryPath, repository_path
from outpost_runtime.update.mirror.cache import MirrorCache
from outpost_runtime.update.mirror.download import Download
from outpost_runtime.update.mirror.ranges import selected

FRESH_SECONDS = 5.0
MOST_REQUESTS = 128
MOST_DOWNLOADS = 32
"""Files that may be under way or wait for an upstream connection."""

_REMEMBERED_BYTES = 64 << 20
_REMEMBERED_FILES = 4096
_ANSWER_SECONDS = 900.0
_KEEPALIVE_SECONDS = 60.0
_PIECE = 256 << 10
_SHUTDOWN_SECONDS = 2.0
_LOG = logging.getLogger(__name__)

_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Cache-Control": "no-transform",  # a proxy that packs would break every range
    "Accept-Ranges": "bytes",
}
Buffer = bytes | memoryview
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fresh:
    """What the repository said a moment ago; None for a file that it does not have."""

    data: bytes | None
    until: float


class Mirror:
    """A pull-through cache of one repository.

    Args:
        fetchers: One for each upstream connection.
        clock: Seconds that only count up.
    """

    def __init__(
        self,
        fetchers: Sequence[Fetcher],
        cache: MirrorCache,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._idle: asyncio.Queue[Fetcher] = asyncio.Queue()
        for fetcher in fetchers:
            self._idle.put_nowait(fetcher)
        self._cache = cache
        self._clock = clock
        self._fresh: OrderedDict[str, _Fresh] = OrderedDict()
        self._downloads: dict[str, Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        app = web.Application(middlewares=[self._answer_errors])
        app.router.add_get("/{path:.*}", self._get, allow_head=False)
        self._runner = web.AppRunner(
            app,
            logger=listener_log(),
            access_log=None,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            handle_signals=False,
            handler_cancellation=True,
        )

    async def start(self, address: Address) -> int:
        """Begin to listen; returns the port.

        Raises:
            ConfigurationError: The address cannot be bound.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"The mirror cannot listen on {address}: {error.strerror or error}.",
                hint="Choose another address with --address.",
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Refuse new requests, give running ones a moment."""
        await self._runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = repository_path(request.raw_path.removeprefix("/"))
        if path is None:
            raise NotFoundError("No repository has such a path.")
        data = await self._kept(path)
        if data is not None:
            return await _answer(request, data)
        download = self._download(path)
        await download.begun()
        return await _stream(request, download)

    async def _kept(self, path: RepositoryPath) -> bytes | None:
        if path.digest is not None:
            return await asyncio.to_thread(self._cache.read, path)
        fresh = self._fresh.get(path.text)
        if fresh is None or fresh.until < self._clock():
            return None
        if fresh.data is None:
            raise NotFoundError(f"The repository has no {path.text}.")
        return fresh.data

    def _download(self, path: RepositoryPath) -> Download:
        """Return the download of a file; the first who asks begins it."""
        download = self._downloads.get(path.text)
        if download is None:
            if len(self._downloads) >= MOST_DOWNLOADS:
                raise BusyError("Too many files are being fetched.", retry_after=2.0)
            download = self._downloads[path.text] = Download(path)
            task = asyncio.create_task(self._carry_out(download))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return download

    async def _carry_out(self, download: Download) -> None:
        path, asked = download.path, self._clock()
        try:
            fetcher = await self._idle.get()
            try:
                await download.run(fetcher)
            finally:
                self._idle.put_nowait(fetcher)
            if download.error is not None and not isinstance(download.error, NotFoundError):
                _LOG.info("not mirrored: %s", download.error.message)
            if path.digest is None:
                self._remember(download, asked)
            elif download.error is None:
                await asyncio.to_thread(self._cache.keep, path, download.data)
        finally:
            del self._downloads[path.text]

    def _remember(self, download: Download, asked: float) -> None:
        is_absent = isinstance(download.error, NotFoundError)
        if download.error is not None and not is_absent:
            return
        data = None if is_absent else bytes(download.data)
        self._fresh[download.path.text] = _Fresh(data=data, until=asked + FRESH_SECONDS)
        self._fresh.move_to_end(download.path.text)
        total = sum(len(fresh.data or b"") for fresh in self._fresh.values())
        while total > _REMEMBERED_BYTES or len(self._fresh) > _REMEMBERED_FILES:
            total -= len(self._fresh.popitem(last=False)[1].data or b"")

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self._requests += 1
        try:
            if self._requests > MOST_REQUESTS:
                return _refusal(503, "Too many requests are under way.", retry_after=1.0)
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        except BusyError as error:
            return _refusal(503, error.message, retry_after=error.retry_after)
        except NotFoundError as error:
            return _refusal(404, error.message)
        except OutpostError as error:
            return _refusal(502, error.message)
        finally:
            self._requests -= 1


async def _answer(request: web.Request, data: bytes) -> web.StreamResponse:
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    size = len(data)
    asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
    selection = selected(asked, condition, etag=etag, size=size)
    headers = _HEADERS | {"ETag": etag}
    if selection is None:
        response, body = web.StreamResponse(headers=headers), memoryview(data)
    elif selection.start == selection.end:
        return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    else:
        headers["Content-Range"] = f"bytes {selection.start}-{selection.end - 1}/{size}"
        response = web.StreamResponse(status=206, headers=headers)
        body = memoryview(data)[selection.start : selection.end]
    response.content_length = len(body)
    return await _send(request, response, _pieces(body))


async def _stream(request: web.Request, download: Download) -> web.StreamResponse:
    """Pass a file on while it comes: whole, since nobody knows yet how long it is."""
    headers = dict(_HEADERS)
    if download.path.digest is not None:
        headers["ETag"] = f'"{download.path.digest}"'
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    return await _send(request, response, download.pieces())


async def _send(
    request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[Buffer]
) -> web.StreamResponse:
    await response.prepare(request)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            async for piece in pieces:
                await response.write(piece)
            await response.write_eof()
    except (OutpostError, TimeoutError):
        # The status was sent. Without an end the client knows that it has not all.
        if request.transport is not None:
            request.transport.abort()
    return response


async def _pieces(body: memoryview) -> AsyncIterator[Buffer]:
    for begin in range(0, len(body), _PIECE):
        yield body[begin : begin + _PIECE]


def _refusal(status: int, text: str, *, retry_after: float | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return web.Response(status=status, text=f"{text}\n", headers=headers)
