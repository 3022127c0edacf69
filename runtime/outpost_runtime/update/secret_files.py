"""Files that only their owner may read: keys, sealed or in the clear.

They are created once and never replaced by accident: :func:`create_secret` refuses to.
"""

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outpost_runtime.bundle import sync_folder
from outpost_runtime.errors import NotFoundError, StoreError

_LOG = logging.getLogger(__name__)


@contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """Make a folder for one's own eyes, and keep others from changing it meanwhile.

    Raises:
        StoreError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(folder.parent)
        sync_folder(folder.parent.parent)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise StoreError(
            f"The folder {folder} cannot be changed: {error.strerror or error}.",
            hint="Name a folder that you may write; nothing was changed.",
        ) from error


def create_secret(path: Path, data: bytes) -> None:
    """Write a secret that is not there yet; after a power cut it is there whole or not at all.

    Raises:
        FileExistsError: There is one; it stays.
    """
    if path.exists():
        raise FileExistsError(path)
    replace_secret(path, data)


def replace_secret(path: Path, data: bytes) -> None:
    """Write a secret; after a power cut the file has either the old or the new content."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a cut before; it may have another owner's mode
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_secret(path: Path, *, limit: int) -> bytes:
    """Read a secret, and take it away from others' eyes if somebody has opened it to them.

    Raises:
        NotFoundError: There is none.
        StoreError: It cannot be read, or has more than ``limit`` bytes.
    """
    try:
        with path.open("rb") as file:
            _close_to_others(path, file.fileno())
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFoundError(f"There is no key file {path}.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > limit:
        raise StoreError(f"{path} is no key file: it has more than {limit:,} bytes.")
    return data


def _close_to_others(path: Path, descriptor: int) -> None:
    # Refusing to start would help nobody: what others could read, they may have read already.
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        _LOG.warning("%s could be read by others; it is closed to them now", path)
        os.fchmod(descriptor, 0o600)
