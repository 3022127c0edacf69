"""A block on its way in: bytes so far in a ``.part`` file, and their digest."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from outpost_runtime.errors import FetchError, StoreError

PART = ".part"
_CHUNK = 256 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Incoming:
    """What came of a block so far; every byte that is written stays for the next try.

    Args:
        path: The ``.part`` file; what it holds is gone on from, unless it is too long.
        block_id: The digest that the whole block must have.
        whole: Stored bytes of the whole block.

    Attributes:
        size: Bytes that are here.

    Raises:
        OSError: The file cannot be opened.
        StoreError: Another process has it open.
    """

    def __init__(self, path: Path, block_id: str, whole: int) -> None:
        self.path = path
        self.block_id = block_id
        self.whole = whole
        self._descriptor = os.open(path, _FLAGS, 0o644)
        self._digest = hashlib.sha256()
        self.size = 0
        try:
            self._lock()
            self._take_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            FetchError: They are more than the block has.
            StoreError: The disk refuses; where it is full, the file was removed to free it.
        """
        if self.size + len(piece) > self.whole:
            raise FetchError(f"The block {self.block_id} came longer than {self.whole:,} bytes.")
        with store_errors(self.path.parent, len(piece)), self._removed_when_full():
            rest = memoryview(piece)
            while rest:
                count = os.write(self._descriptor, rest)
                self._digest.update(rest[:count])
                self.size += count
                rest = rest[count:]

    def is_full(self) -> bool:
        """Whether as many bytes are here as the block has."""
        return self.size == self.whole

    def is_right(self) -> bool:
        """Whether the block is whole and has its digest."""
        return self.is_full() and self._digest.hexdigest() == self.block_id

    def content(self) -> bytes:
        """Return a block that is right.

        Raises:
            StoreError: The disk gave other bytes than were written.
        """
        with store_errors(self.path.parent, 0):
            data = os.pread(self._descriptor, self.whole, 0)
        if hashlib.sha256(data).hexdigest() != self.block_id:
            raise StoreError(f"{self.path} changed after it was written; is the disk failing?")
        return data

    def restart(self) -> None:
        """Throw away what came so far.

        Raises:
            StoreError: The disk refuses.
        """
        with store_errors(self.path.parent, 0):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self.size = 0

    def remove(self) -> None:
        """Remove the file: it has served.

        Raises:
            StoreError: The disk refuses.
        """
        with store_errors(self.path.parent, 0):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which stays; called twice it does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"The block {self.block_id} is being received by another process.",
                hint="Wait until the other sync has ended.",
            ) from None

    def _take_up(self) -> None:
        if os.fstat(self._descriptor).st_size > self.whole:
            os.ftruncate(self._descriptor, 0)
        while piece := os.read(self._descriptor, _CHUNK):
            self._digest.update(piece)
            self.size += len(piece)

    @contextlib.contextmanager
    def _removed_when_full(self) -> Iterator[None]:
        # A full disk keeps the box from going back to its previous model: a megabyte to fetch
        # again is the smaller harm.
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                self.path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def store_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the disk says into a :class:`StoreError`; where it is full, with figures.

    Args:
        needed: Bytes that were to be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise StoreError(
                f"The store {folder} cannot be used: {error.strerror or error}."
            ) from error
        raise StoreError(
            f"The disk of {folder} is full: {_free(folder):,} bytes are free, "
            f"{needed:,} more were to be written.",
            hint="Free some space; what is complete stays, and the next sync goes on from there.",
        ) from error


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
