"""What a mirror keeps: files named by their digests, the least recently used going first.

::

    FOLDER/blocks/… targets/… deltas/…     as in a repository
    FOLDER/.incoming-*                     a file on its way in; swept at the start

Every file is checked when it comes and whenever it is read. So nothing is flushed to the disk:
what a power cut damages is found, thrown away and fetched again.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from outpost_runtime.errors import StoreError
from outpost_runtime.update.fetch.paths import RepositoryPath, repository_path

_SPARE_BYTES = 256 << 20
"""Left free on the disk: the box has other work than to be a mirror."""

_INCOMING = ".incoming-"
_LOG = logging.getLogger(__name__)


class MirrorCache:
    """Files on disk, at most so many bytes of them; any thread may call.

    Args:
        folder: Made if it is not there; files in it that no repository has are left alone.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int, *, spare: int = _SPARE_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._spare = spare
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{_INCOMING}*"):
                path.unlink(missing_ok=True)
            found = sorted(_found(folder))
        except OSError as error:
            raise StoreError(
                f"The mirror's folder {folder} cannot be used: {error.strerror or error}.",
                hint="Name a folder that you may write, with --folder.",
            ) from error
        self._sizes = OrderedDict((name, size) for _, name, size in found)
        self.bytes = sum(self._sizes.values())

    def read(self, path: RepositoryPath) -> bytes | None:
        """Return a file that is here and right; a damaged one is thrown away."""
        with self._lock:
            if path.text not in self._sizes:
                return None
            self._sizes.move_to_end(path.text)
        file = self._folder / path.text
        try:
            with file.open("rb") as stream:
                data = stream.read(path.kind.limit + 1)
            _touch(file)
        except OSError as error:
            _LOG.warning("%s cannot be read: %s", file, error.strerror)
            data = b""
        if hashlib.sha256(data).hexdigest() == path.digest:
            return data
        _LOG.warning("%s is damaged; it will be fetched again", file)
        with self._lock:
            self._drop(path.text)
        return None

    def keep(self, path: RepositoryPath, data: bytes | bytearray) -> None:
        """Keep a file whose digest was checked, if older ones can make room for it."""
        try:
            with self._lock:
                if path.text in self._sizes or not self._make_room(len(data)):
                    return
                self._sizes[path.text] = len(data)
                self.bytes += len(data)
            self._write(path.text, data)
        except OSError as error:
            _LOG.warning("%s is not kept: %s", path.text, error.strerror)
            with self._lock:
                self._drop(path.text)

    def _make_room(self, size: int) -> bool:
        if size > self._limit:
            return False
        while self._sizes and not self._has_room(size):
            self._drop(next(iter(self._sizes)))
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        free = shutil.disk_usage(self._folder).free
        return self.bytes + size <= self._limit and free - size >= self._spare

    def _drop(self, name: str) -> None:
        self.bytes -= self._sizes.pop(name, 0)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes | bytearray) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=_INCOMING, dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _found(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Give last use (ns), path and size of every file that could be ours."""
    for parent, _, names in os.walk(folder):
        for file in (Path(parent) / name for name in names):
            path = repository_path(file.relative_to(folder).as_posix())
            if path is not None and path.digest and file.is_file() and not file.is_symlink():
                status = file.stat()
                yield status.st_atime_ns, path.text, status.st_size


def _touch(file: Path) -> None:
    # Filesystems are often mounted so that reading leaves no trace.
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
