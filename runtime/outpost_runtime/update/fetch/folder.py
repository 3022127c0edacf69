"""A repository in a folder: a USB stick, a network drive, a test.

A stick is anybody's. Links are not followed, below the folder itself; only regular files are
opened, so that no pipe or device can hold us; a file is never read beyond what was asked for.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.fetch.paths import check_safe

_PIECE = 256 << 10
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderFetcher:
    """A repository's files in a folder.

    Args:
        folder: The repository; the first read remembers which folder that is, so that a stick
            that is pulled out never looks like one that has nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """The folder."""
        return str(self._folder)

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        check_safe(path)
        try:
            with self._open(path) as descriptor:
                yield from self._pieces(path, descriptor, start, limit)
        except OSError as error:
            raise FetchError(
                f"{path} of {self.label} cannot be read: {error.strerror or error}.",
                hint="Is the stick still plugged in?",
            ) from error

    def _pieces(self, path: str, descriptor: int, start: int, limit: int) -> Iterator[bytes]:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise self._refused(path, f"{size:,} bytes are more than the {limit:,} allowed")
        if size < start:
            raise self._refused(path, f"it has {size:,} bytes, and {start:,} are here already")
        while start < size:
            piece = os.pread(descriptor, min(_PIECE, size - start), start)
            if not piece:
                raise self._refused(path, f"it ended after {start:,} bytes")
            start += len(piece)
            yield piece

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[int]:
        *folders, name = path.split("/")
        with contextlib.ExitStack() as opened:
            inner = _opened(opened, os.open(self._folder, _FOLDER))
            self._check_same(inner)
            try:
                for folder in folders:
                    inner = _opened(opened, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=inner))
                # Looking first: opening a device can have effects.
                self._check_regular(path, os.stat(name, dir_fd=inner, follow_symlinks=False))
                file = _opened(opened, os.open(name, _FILE, dir_fd=inner))
            except FileNotFoundError:
                raise NotFoundError(f"{self.label} has no {path}.") from None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise self._refused(path, "there is a link in the way") from error
                raise
            self._check_regular(path, os.fstat(file))
            yield file

    def _check_same(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino
        self._identity = self._identity or identity
        if identity != self._identity:
            raise FetchError(
                f"{self.label} is not the folder that it was.",
                hint="Was the stick pulled out? Begin again with it.",
                retry_after=float("inf"),
            )

    def _check_regular(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._refused(path, "it is no regular file")

    def _refused(self, path: str, problem: str) -> FetchError:
        return FetchError(f"{path} of {self.label}: {problem}.", retry_after=float("inf"))


def _opened(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor
