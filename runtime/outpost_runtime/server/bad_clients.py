"""HTTP clients that stall or send garbage: they neither hold a listener up nor fill its log."""

import asyncio

from aiohttp import web

SILENT_SECONDS = 30.0
"""A body of which nothing comes for longer is given up."""

BODY_SECONDS = 600.0
"""A body that has not come whole by then is given up."""


async def read_body(
    request: web.Request, *, silent: float = SILENT_SECONDS, whole: float = BODY_SECONDS
) -> bytes:
    """Return a request's body, unpacked.

    Args:
        silent: Seconds in which nothing may come.
        whole: Seconds in which all must come.

    Raises:
        web.HTTPRequestTimeout: It did not.
        web.HTTPRequestEntityTooLarge: It has more bytes than the application takes.
        web.RequestPayloadError: It is not packed as its Content-Encoding says.
    """
    clock = asyncio.get_running_loop().time
    end, body = clock() + whole, bytearray()
    try:
        async with asyncio.timeout(min(silent, whole)) as limit:
            while piece := await request.content.readany():
                body += piece
                if len(body) > request.client_max_size:
                    raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(body))
                limit.reschedule(min(clock() + silent, end))
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="The body did not come in time") from error
    return bytes(body)
