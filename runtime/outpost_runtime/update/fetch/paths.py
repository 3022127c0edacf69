"""Paths in a repository: which are safe to ask for, and which a repository can have.

::

    metadata/<version>.<role>.json   metadata/timestamp.json
    targets/<family>/<sha256>.<name>.json
    blocks/<2 digits>/<sha256>
    deltas/<sha256>.json
    keys/<key>/<recipient>.json
    keys/groups/<recipient>/<number>.json
"""

import re
from dataclasses import dataclass
from enum import Enum

from outpost_runtime.errors import FetchError
from outpost_runtime.update.release import MAX_RELEASE_BYTES, MAX_STORED_BYTES

MAX_METADATA_BYTES = 16 << 20
MAX_KEY_BYTES = 64 << 10
_LONGEST = 512

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_DIGEST = r"(?P<digest>[0-9a-f]{64})"
_SAFE = re.compile(rf"{_NAME}(/{_NAME})*")
_VERSIONED = re.compile(r"metadata/[0-9]+\.[^/]+")


class Kind(Enum):
    """What lies in a repository; the value is the largest size of such a file in bytes."""

    # A tuple, because two kinds have the same size and must not be one.
    METADATA = ("metadata", MAX_METADATA_BYTES)
    TARGET = ("targets", MAX_RELEASE_BYTES)
    BLOCK = ("blocks", MAX_STORED_BYTES)
    DELTA_INDEX = ("deltas", MAX_RELEASE_BYTES)
    KEY = ("keys", MAX_KEY_BYTES)

    @property
    def limit(self) -> int:
        """Largest size of such a file in bytes."""
        return self.value[1]


_SHAPES = {
    Kind.METADATA: re.compile(rf"metadata/{_NAME}\.json"),
    Kind.TARGET: re.compile(rf"targets/{_NAME}/{_DIGEST}\.{_NAME}\.json"),
    Kind.BLOCK: re.compile(r"blocks/(?P<folder>[0-9a-f]{2})/(?P<digest>(?P=folder)[0-9a-f]{62})"),
    Kind.DELTA_INDEX: re.compile(rf"deltas/{_DIGEST}\.json"),
    Kind.KEY: re.compile(rf"keys/([0-9a-f]{{64}}|groups/[0-9a-f]{{64}})/{_NAME}\.json"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepositoryPath:
    """A path that a repository can have.

    Attributes:
        digest: SHA-256 of the file, where its name says so.
    """

    text: str
    kind: Kind
    digest: str | None


def repository_path(text: str) -> RepositoryPath | None:
    """Read a path strictly; None for whatever no repository has."""
    if len(text) > _LONGEST:
        return None
    for kind, shape in _SHAPES.items():
        if match := shape.fullmatch(text):
            return RepositoryPath(text=text, kind=kind, digest=match.groupdict().get("digest"))
    return None


def check_safe(path: str) -> None:
    """Refuse a path that leaves the repository, or hides something from whoever reads it.

    Raises:
        FetchError: It is no plain relative path.
    """
    if len(path) > _LONGEST or not _SAFE.fullmatch(path):
        raise FetchError(f"'{path[:80]}' is no path of a repository.", retry_after=float("inf"))


def may_be_replaced(path: str) -> bool:
    """Whether a repository may hold other bytes under this path tomorrow.

    Pieces of such a file from two requests must never be joined.
    """
    return path.startswith(("metadata/", "keys/")) and not _VERSIONED.fullmatch(path)
