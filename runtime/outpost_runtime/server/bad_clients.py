"""HTTP clients that stall or send garbage: they neither hold a listener up nor fill its log."""

import asyncio
import logging

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError

SILENT_SECONDS = 30.0
"""A body of which nothing comes for longer is given up."""

BODY_SECONDS = 600.0
"""A body that has not come whole by then is given up."""

_FAULTS = (HttpProcessingError, web.RequestPayloadError, ClientConnectionResetError)


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


def listener_log() -> logging.Logger:
    """Return the log of an aiohttp listener, in which clients' faults are not written.

    aiohttp writes a traceback for each that hangs up or sends no HTTP: anybody could fill a disk.
    """
    log = logging.getLogger(f"{__name__}.listener")
    log.addFilter(_is_no_fault_of_a_client)  # again is no harm
    return log


def _is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, _FAULTS)
