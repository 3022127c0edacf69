"""One file on its way from the repository, read by everybody who asked for it meanwhile."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator

from outpost_runtime.errors import FetchError, OutpostError
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.paths import RepositoryPath


class Download:
    """A file that comes in a thread of its own; all methods are for the event loop.

    The thread is a daemon: a mirror that ends does not wait for a repository that says nothing.
    """

    def __init__(self, path: RepositoryPath) -> None:
        self.path = path
        self.data = bytearray()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_done = False
        self._error: OutpostError | None = None

    async def run(self, fetcher: Fetcher) -> None:
        """Fetch the file and check its digest; how it ended is for the readers."""
        threading.Thread(target=self._fetch, args=(fetcher,), daemon=True).start()
        while not self._is_done:
            await self._news()

    @property
    def error(self) -> OutpostError | None:
        """What went wrong, once it has ended."""
        return self._error

    async def begun(self) -> None:
        """Wait until there is a first byte, or the end.

        Raises:
            NotFoundError: The repository has no such file.
            FetchError: It failed.
        """
        while not self.data and not self._is_done:
            await self._news()
        if not self.data and self._error is not None:
            raise self._error

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Give the bytes as they come, from the first one.

        Raises:
            FetchError: The repository failed in the middle, or gave wrong bytes.
        """
        done = 0
        while True:
            if done < len(self.data):
                piece = bytes(self.data[done:])
                done += len(piece)
                yield piece
            elif self._is_done:
                break
            else:
                await self._news()
        if self._error is not None:
            raise self._error

    async def _news(self) -> None:
        changed = self._changed
        await changed.wait()

    def _add(self, piece: bytes) -> None:
        self.data += piece
        self._tell()

    def _end(self, error: OutpostError | None) -> None:
        self._error = error
        self._is_done = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _fetch(self, fetcher: Fetcher) -> None:
        digest, error = hashlib.sha256(), None
        try:
            for piece in fetcher.read(self.path.text, limit=self.path.kind.limit):
                digest.update(piece)
                self._loop.call_soon_threadsafe(self._add, piece)
            if self.path.digest not in (None, digest.hexdigest()):
                error = FetchError(f"{self.path.text} of {fetcher.label} has another digest.")
            self._loop.call_soon_threadsafe(self._end, error)
        except OutpostError as failure:
            self._loop.call_soon_threadsafe(self._end, failure)
        except RuntimeError:  # the loop has ended, and with it everybody who asked
            return
