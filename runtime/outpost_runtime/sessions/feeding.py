"""A thread that writes pieces into a pipe, for a library that wants to read a file."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

_PIPE_BYTES = 1 << 20


class Feeder:
    """A file without a place: what is read from :attr:`path` is what ``pieces`` gives.

    It is one for as long as the context lasts, and for one reader.

    Args:
        pieces: Asked for one at a time, on another thread, when there is room for the next one.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._error: Exception | None = None
        self.descriptor, self._writing = os.pipe()
        with contextlib.suppress(OSError):  # the system allows less: it only takes longer
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)

    @property
    def path(self) -> str:
        """What to open in this process, or in one that has inherited :attr:`descriptor`."""
        return f"/proc/self/fd/{self.descriptor}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it.

        Raises:
            Exception: What went wrong with the pieces; the reader's error comes of it.
        """
        os.close(self.descriptor)  # so that a feeder whose reader has given up does not wait for it
        self._thread.join()
        if self._error is not None:
            raise self._error from error

    def _feed(self) -> None:
        try:
            for piece in self._pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._writing, rest) :]
        except BrokenPipeError:
            pass  # the reader has given up, and says why
        except Exception as error:  # noqa: BLE001 - raised again where the reader is
            self._error = error
        finally:
            os.close(self._writing)
