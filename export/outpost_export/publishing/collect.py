"""Collecting: removing from a repository what its signed metadata names no more.

A box may still work with metadata of yesterday, and a publication may just be on its way. So
nothing is removed at once: what nobody names is written down with the day on which that was seen
first, in ``unused.json``, and goes when it has stood there for the grace period.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.documents import canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError, TrustError
from outpost_runtime.update.delta_index import delta_path, parse_delta_index
from outpost_runtime.update.release import MAX_RELEASE_BYTES, block_path

from outpost_export.errors import PublishError
from outpost_export.publishing.publish import changing
from outpost_export.publishing.shelf import Shelf

UNUSED_NAME = "unused.json"
UNUSED_FORMAT = "outpost-unused/1"

_OURS = re.compile(
    r"blocks/[0-9a-f]{2}/[0-9a-f]{64}(\.part)?"
    r"|deltas/[0-9a-f]{64}\.json"
    r"|targets/[a-z0-9._-]+/[0-9a-f]{64}\.[A-Za-z0-9._-]+\.json"
)
"""What publishing writes; nothing else is ever removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """What was done.

    Attributes:
        removed: Files that went.
        removed_bytes: Their bytes.
        waiting: Files that nobody names, and that will go when their time is over.
        waiting_bytes: Their bytes.
    """

    removed: int
    removed_bytes: int
    waiting: int
    waiting_bytes: int


def collect(
    folder: Path, shelf: Shelf, *, now: float, grace: float, dry_run: bool = False
) -> Collection:
    """Remove what has been named by nobody for the grace period.

    Args:
        folder: The repository.
        shelf: Its signed offers.
        now: Seconds since 1970.
        grace: Seconds.
        dry_run: Work it out, and change nothing.

    Raises:
        TrustError: The metadata is not signed by the repository's own keys, or a release is not
            what it names; nothing is removed.
        BusyError: The repository is being changed by another command.
        PublishError: The disk refuses.
    """
    with contextlib.nullcontext() if dry_run else changing(folder):
        return _collect(folder, shelf, now=now, grace=grace, dry_run=dry_run)


def _collect(folder: Path, shelf: Shelf, *, now: float, grace: float, dry_run: bool) -> Collection:
    named = _named(folder, shelf)
    try:
        present = _present(folder)
        since = due(present, named, _read(folder), now)
        gone = {path for path, seen in since.items() if now - seen >= grace}
        if not dry_run:
            _remove(folder, gone, since)
    except OSError as error:
        raise PublishError(
            f"{folder} cannot be cleared up: {error.strerror or error}.",
            hint="What is named is still there; run it again.",
        ) from error
    return Collection(
        removed=len(gone),
        removed_bytes=sum(present[path] for path in gone),
        waiting=len(since) - len(gone),
        waiting_bytes=sum(present[path] for path in since if path not in gone),
    )


def due(
    present: Iterable[str], named: set[str], since: Mapping[str, float], now: float
) -> dict[str, float]:
    """Return what is present and not named, with the time when that was first seen. Pure.

    A time that lies in the future, after the clock was set back, counts from now.
    """
    return {path: min(since.get(path, now), now) for path in present if path not in named}


def _named(folder: Path, shelf: Shelf) -> set[str]:
    named = set(shelf.files())
    for offer in shelf.offers():
        release = shelf.release(offer)
        named |= {block_path(block.id) for block in release.blocks()}
        for reference in release.deltas:
            path = delta_path(reference.index)
            named.add(path)
            named |= _deltas(folder / path)
    return named


def _deltas(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            index = parse_delta_index(file.read(MAX_RELEASE_BYTES))
    except FileNotFoundError:
        return set()  # boxes take the blocks themselves
    except (OSError, TrustError) as error:
        raise PublishError(
            f"{path} cannot be read: {error}",
            hint="Publish that bundle again; nothing was removed.",
        ) from error
    return {block_path(delta.id) for delta in index.deltas}


def _present(folder: Path) -> dict[str, int]:
    found = {}
    for part in ("blocks", "deltas", "targets"):
        for path in (folder / part).rglob("*"):
            name = path.relative_to(folder).as_posix()
            if _OURS.fullmatch(name) and path.is_file() and not path.is_symlink():
                found[name] = path.stat().st_size
    return found


def _read(folder: Path) -> dict[str, float]:
    try:
        reader = parse_json_object((folder / UNUSED_NAME).read_bytes(), path=UNUSED_NAME)
        if reader.string("format") != UNUSED_FORMAT:
            return {}
        return reader.table("since").numbers()
    except (FileNotFoundError, InvalidInputError):
        return {}  # then the grace period begins again


def _remove(folder: Path, gone: set[str], since: Mapping[str, float]) -> None:
    # First written down, then removed: cut off in between, the rest goes the next time.
    document = {"format": UNUSED_FORMAT, "since": dict(since)}
    write_durably(folder / UNUSED_NAME, canonical_json(document))
    for path in sorted(gone):
        (folder / path).unlink(missing_ok=True)
