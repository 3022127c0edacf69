"""The files of trust on a device, below ``STORE/trust/``.

::

    root.json              the newest root that was accepted: what everything else hangs on
    timestamp.json         the newest timestamp; it names the generation of files that counts
    stick.json             the newest timestamp that came on a stick
    N.snapshot.json  N.targets.json  N.family-<family>.json
    clock.json             the lower bounds: newest signed time, highest versions
    accepted.json          by name: the newest release that was accepted, and whose it was
    accepted.copy.json     the same, for when the first is damaged: nobody could send it again
    .lock                  held by whoever changes these files

Every file is replaced as a whole. A generation is complete before a timestamp that names it is
written, and its files carry their versions, so a cut at any moment leaves the old or the new.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from outpost_runtime.bundle import sync_folder, write_durably
from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError, StoreError
from outpost_runtime.update.offers import Accepted
from outpost_runtime.update.seen import Seen

ROOT = "root.json"
_CLOCK = "clock.json"
_ACCEPTED = ("accepted.json", "accepted.copy.json")
_MAX_RECORD_BYTES = 1 << 20

Write = Callable[[Path, bytes], None]


class TrustFiles:
    """The folder, and what is written there.

    Args:
        folder: ``STORE/trust``.
        write: How a file is replaced; it survives a power cut whole.
    """

    def __init__(self, folder: Path, write: Write = write_durably) -> None:
        self.folder = folder
        self._write = write

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a file of at most ``limit`` bytes; None if there is none, or a damaged one."""
        try:
            with (self.folder / name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError:
            return None
        return data if len(data) <= limit else None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, inside :meth:`changing`."""
        self._write(self.folder / name, data)

    def seen(self) -> Seen:
        """Return the lower bounds; none where their file is missing or damaged."""
        try:
            return _seen(self._record(_CLOCK))
        except InvalidInputError:
            return Seen()

    def write_seen(self, seen: Seen) -> None:
        """Replace the lower bounds, inside :meth:`changing`."""
        document = {
            "time": seen.time,
            "timestamp": seen.timestamp,
            "stick": seen.stick,
            "snapshot": seen.snapshot,
            "keys": sorted(seen.keys),
        }
        self.write(_CLOCK, _sealed(document))

    def accepted(self) -> dict[str, Accepted]:
        """Return what was accepted, by name.

        Raises:
            StoreError: It was recorded, and every copy of the record is damaged.
        """
        here = [name for name in _ACCEPTED if (self.folder / name).exists()]
        for name in here:
            with contextlib.suppress(InvalidInputError):
                return _accepted(self._record(name))
        if here:
            raise StoreError(
                f"{self.folder / here[0]} is damaged, and so is its copy: which releases this "
                "box has had is not known any more.",
                hint="Remove both files to begin again; older releases would be accepted once.",
            )
        return {}

    def write_accepted(self, accepted: Mapping[str, Accepted]) -> None:
        """Replace what was accepted, inside :meth:`changing`."""
        document = {
            name: {"family": one.family, "release": one.release} for name, one in accepted.items()
        }
        for name in _ACCEPTED:
            self.write(name, _sealed(document))

    def sweep(self, kept: Collection[str]) -> None:
        """Remove files of generations other than the kept ones, inside :meth:`changing`."""
        for path in self.folder.iterdir():
            versioned, cut_off = path.name[0].isdigit(), path.name.endswith(".new")
            if cut_off or (versioned and path.name not in kept):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the folder, making it where there is none; waits for who holds it.

        Raises:
            StoreError: The folder cannot be written; what was not yet replaced is as it was.
        """
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be changed: {error.strerror or error}.",
                hint="Nothing was lost; try again when it can be written.",
            ) from error

    def _record(self, name: str) -> Reader:
        data = self.read(name, _MAX_RECORD_BYTES)
        if data is None:
            raise InvalidInputError(f"{self.folder / name} cannot be read.")
        reader = parse_json_object(data, path=f"{name}:")
        digest, record = reader.string("sha256"), reader.table("record").raw()
        reader.end()
        if _digest(record) != digest:  # one changed digit could stop a box for ever
            raise InvalidInputError(f"{name} was changed since it was written.")
        return Reader(record, path=f"{name}:record")


def _sealed(record: dict[str, Any]) -> bytes:
    return canonical_json({"record": record, "sha256": _digest(record)})


def _digest(record: dict[str, Any]) -> str:
    try:
        return hashlib.sha256(canonical_json(record)).hexdigest()
    except ValueError as error:  # halves of surrogates, numbers that are none
        raise InvalidInputError("The record cannot have been written so.") from error


def _seen(reader: Reader) -> Seen:
    seen = Seen(
        time=_count(reader, "time"),
        timestamp=_count(reader, "timestamp"),
        stick=_count(reader, "stick"),
        snapshot=_count(reader, "snapshot"),
        keys=frozenset(reader.list_of("keys", str)),
    )
    reader.end()
    return seen


def _accepted(reader: Reader) -> dict[str, Accepted]:
    accepted = {}
    for name, table in reader.named_tables().items():
        accepted[name] = Accepted(family=table.string("family"), release=_count(table, "release"))
        table.end()
    return accepted


def _count(reader: Reader, key: str) -> int:
    value = reader.integer(key)
    if value < 0:
        raise reader.fault(key, "is negative")
    return value
