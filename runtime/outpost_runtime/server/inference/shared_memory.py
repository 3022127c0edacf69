"""Regions of POSIX shared memory that clients have registered, for tensors that are not sent.

A client on this machine makes the memory object and names it; this server opens it. What a
server process may read there is what its user may read in ``/dev/shm``, and no more:
keys are plain names, and a region lies within its object. Clients elsewhere have no regions.
Bytes are copied by read and write and not by a mapping, because a client that shrinks its object
would end the server with SIGBUS.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.errors import InvalidInputError, NotFoundError, UnsupportedError
from outpost_runtime.server.inference.message import Placement

MOST_REGIONS = 256

_LONGEST_NAME = 256
_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux
_KEY = re.compile(r"/?[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A registered part of a memory object, which is open as ``descriptor``."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int


class Regions:
    """The regions of a server; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a region.

        Raises:
            InvalidInputError: The name is taken, the key is none, or the object is smaller.
            NotFoundError: There is no such object, or this user may not use it.
        """
        if not 0 < len(name) <= _LONGEST_NAME or byte_size < 1 or offset < 0:
            raise InvalidInputError(
                f"A region needs a name of at most {_LONGEST_NAME} characters, a size, and no "
                "negative offset."
            )
        with self._lock:
            if name in self._regions:
                raise InvalidInputError(f"The shared memory region '{name}' is registered already.")
            if len(self._regions) >= MOST_REGIONS:
                raise InvalidInputError(f"{MOST_REGIONS} regions are registered already.")
            self._regions[name] = Region(
                name=name,
                key=key,
                offset=offset,
                byte_size=byte_size,
                descriptor=_open(key, offset + byte_size),
            )

    def unregister(self, name: str) -> None:
        """Forget a region, or all for the empty name; one that is not known is no error."""
        with self._lock:
            gone = [name] if name in self._regions else [] if name else list(self._regions)
            for each in gone:
                os.close(self._regions.pop(each).descriptor)

    def status(self, name: str) -> list[Region]:
        """Return a region, or all for the empty name.

        Raises:
            NotFoundError: It is not registered.
        """
        with self._lock:
            return list(self._regions.values()) if not name else [self._get(name)]

    def read(self, place: Placement) -> bytes:
        """Return a copy of what a placement holds: the client may write there at any time.

        Raises:
            NotFoundError: The region is not registered.
            InvalidInputError: The placement is not within it.
        """
        with self._opened(place) as (region, descriptor):
            data = os.pread(descriptor, place.byte_size, region.offset + place.offset)
            if len(data) < place.byte_size:
                raise InvalidInputError(f"The shared memory '{region.key}' has become smaller.")
            return data

    def write(self, place: Placement, data: bytes) -> None:
        """Put bytes into a placement.

        Raises:
            NotFoundError: The region is not registered.
            InvalidInputError: The placement is not within it, or smaller than the bytes.
        """
        with self._opened(place) as (region, descriptor):
            if len(data) > place.byte_size:
                raise InvalidInputError(
                    f"An output takes {len(data)} bytes; the place for it in '{place.region}' "
                    f"has {place.byte_size}."
                )
            if os.pwrite(descriptor, data, region.offset + place.offset) < len(data):
                raise InvalidInputError(f"The shared memory '{region.key}' is full.")

    def check(self, place: Placement) -> None:
        """Refuse a placement that nothing can be put into; see :meth:`write`."""
        with self._lock:
            self._within(place)

    def close(self) -> None:
        """Forget everything."""
        self.unregister("")

    @contextmanager
    def _opened(self, place: Placement) -> Iterator[tuple[Region, int]]:
        """Hold a region open while its bytes are copied, and nobody else up meanwhile."""
        with self._lock:
            region = self._within(place)
            descriptor = os.dup(region.descriptor)
        try:
            yield region, descriptor
        except OSError as error:
            raise InvalidInputError(
                f"The shared memory '{region.key}' cannot be used: {error.strerror}."
            ) from error
        finally:
            os.close(descriptor)

    def _get(self, name: str) -> Region:
        if name not in self._regions:
            raise NotFoundError(f"The shared memory region '{name}' is not registered.")
        return self._regions[name]

    def _within(self, place: Placement) -> Region:
        region = self._get(place.region)
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidInputError(
                f"{place.byte_size} bytes at {place.offset} are not within the region "
                f"'{region.name}' of {region.byte_size}."
            )
        return region


class NoRegions(Regions):
    """Those of a client on another machine: it has no memory here, and sees nobody else's."""

    # ruff: noqa: ARG002 - whatever is asked is refused

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Refuse."""
        raise _elsewhere()

    def unregister(self, name: str) -> None:
        """Refuse."""
        raise _elsewhere()

    def status(self, name: str) -> list[Region]:
        """Refuse."""
        raise _elsewhere()

    def _get(self, name: str) -> Region:
        raise _elsewhere()


def _elsewhere() -> UnsupportedError:
    return UnsupportedError(
        "Shared memory is for clients on the server's own machine.",
        hint="Send the tensors, or connect to the server's address on the loopback.",
    )


def _open(key: str, end: int) -> int:
    if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
        raise InvalidInputError(f"'{key}' is no name of shared memory.")
    try:
        descriptor = os.open(_FOLDER / key.strip("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(
            f"The shared memory '{key}' cannot be opened: {error.strerror}."
        ) from error
    size = os.fstat(descriptor).st_size
    if end > size:
        os.close(descriptor)
        raise InvalidInputError(
            f"The shared memory '{key}' has {size} bytes; the region would end at {end}."
        )
    return descriptor
