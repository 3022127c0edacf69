"""Contents: the files of a bundle, wherever they come from.

This file is the contract and its plain form, a folder. The other form (``update/sealed.py``)
decrypts into memory, and no file of it lies anywhere as it is.
"""

import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from outpost_runtime.errors import BundleError

PIECE_BYTES = 1 << 20
DAMAGED = "The bundle was damaged or changed after it was built; get it again."


class Contents(Protocol):
    """The files of one bundle. May be used by several threads at once."""

    def place(self, name: str) -> str:
        """Return which file of which bundle that is, for people."""

    def pieces(self, name: str, *, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a file's bytes in pieces of at most :data:`PIECE_BYTES`.

        Args:
            start: Where to begin.
            size: Give at most so many; None: all to the file's end.

        Raises:
            BundleError: The file is not here, cannot be read, or is known to be damaged.
        """

    def stranger(self, listed: Collection[str]) -> str | None:
        """Return the place of something that is here and not listed, or None."""

    def path(self, name: str) -> Path | None:
        """Return where a file lies on a disk as it is, so that it can be mapped; None: nowhere."""


class FolderContents:
    """A folder of files; see :class:`Contents`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> str:
        """See :class:`Contents`."""
        return str(self.path(name))

    def pieces(self, name: str, *, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """See :class:`Contents`."""
        path = self.path(name)
        rest = sys.maxsize if size is None else size
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise BundleError(f"{path} is not a file.", hint=DAMAGED)
            with path.open("rb") as file:
                file.seek(start)
                while chunk := file.read(min(PIECE_BYTES, rest)):
                    rest -= len(chunk)
                    yield chunk
        except OSError as error:
            reason = error.strerror or str(error)
            raise BundleError(f"{path} cannot be read: {reason}.", hint=DAMAGED) from error

    def stranger(self, listed: Collection[str]) -> str | None:
        """See :class:`Contents`; links are strangers, whatever their name."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or (name not in listed and not path.is_dir()):
                return str(path)
        return None

    def path(self, name: str) -> Path:
        """See :class:`Contents`."""
        return self.folder / name
