"""What systemd is told, where it asked: that the server serves, and again and again that it lives.

Specification: sd_notify(3), sd_watchdog_enabled(3). Nothing is said where ``$NOTIFY_SOCKET`` is not
set. The sign of life comes from the event loop, so a server whose loop hangs is started again.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping

_MICROSECONDS = 1_000_000


class ServiceManager:
    """The socket that the service manager gave this process.

    Args:
        environment: Of the process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._pause = _pause(environment.get("WATCHDOG_USEC", ""))

    def tell(self, state: str) -> None:
        """Send a state, such as ``READY=1``; a manager that does not listen changes nothing."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door,
        ):
            door.setblocking(False)
            door.sendto(state.encode(), self._address)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Tell that the server is ready, that it lives, and in the end that it stops."""
        self.tell("READY=1")
        signs = asyncio.create_task(self._keep_telling())
        try:
            yield
        finally:
            signs.cancel()
            self.tell("STOPPING=1")

    async def _keep_telling(self) -> None:
        while self._pause is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._pause)


def _pause(microseconds: str) -> float | None:
    # Half of what the manager waits for, as its documentation asks.
    if not microseconds.isdecimal() or not int(microseconds):
        return None
    return int(microseconds) / _MICROSECONDS / 2
