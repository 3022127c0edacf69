"""A release: a bundle as it is shipped, its files as lists of blocks.

It is the target that a publisher signs; its schema is documented in ``docs/update-format.md``.
File names are plain relative paths.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from outpost_runtime.documents import Reader, canonical_json
from outpost_runtime.manifest import MANIFEST_NAME
from outpost_runtime.update.signed_fields import (
    DIGEST,
    NAME,
    count,
    digits,
    fields,
    matching,
    parsed,
)

RELEASE_FORMAT = "outpost-release/1"
BLOCK_BYTES = 1 << 20
"""Largest plaintext of a block; publishers cut here and at tensor starts."""

MAX_STORED_BYTES = BLOCK_BYTES + (1 << 14)
"""Largest block as it is stored: encrypted, with everything that encryption adds."""

MAX_RELEASE_BYTES = 32 << 20

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A piece of a file.

    Attributes:
        id: SHA-256 of its stored (encrypted) bytes; its name in repositories and stores.
        size: Bytes of its plaintext.
        stored: Bytes as stored.
    """

    id: str
    size: int
    stored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedFile:
    """One file of a bundle, ``manifest.json`` included, as blocks in order."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(block.size for block in self.blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The bundle that an adapter needs."""

    name: str
    bundle: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaReference:
    """Where the deltas from one predecessor are listed.

    Attributes:
        bundle: The predecessor's bundle digest.
        index: SHA-256 of the :class:`DeltaIndex`, which lies at ``deltas/<index>.json``.
        index_bytes: Its size.
        stored: Bytes of all its deltas.
    """

    bundle: str
    index: str
    index_bytes: int
    stored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A bundle as it is shipped.

    Attributes:
        bundle: The bundle's digest: SHA-256 of its ``manifest.json``.
        key: Identity of the content key that its blocks are encrypted with.
        memory_bytes: What the opened model is expected to need.
    """

    name: str
    version: str
    target: str
    bundle: str
    base: Base | None
    key: str
    memory_bytes: int
    files: tuple[ReleasedFile, ...]
    deltas: tuple[DeltaReference, ...]

    def blocks(self) -> Iterator[Block]:
        """Every block in the order of files; one may come several times."""
        for file in self.files:
            yield from file.blocks


def block_path(block_id: str) -> str:
    """Return where a block or a delta lies in a repository."""
    return f"blocks/{block_id[:2]}/{block_id}"


def encode_release(release: Release) -> bytes:
    """Return the canonical bytes of a release."""
    document: dict[str, Any] = {
        "format": RELEASE_FORMAT,
        "name": release.name,
        "version": release.version,
        "target": release.target,
        "bundle": release.bundle,
        "key": release.key,
        "memory_bytes": release.memory_bytes,
        "files": {file.name: [_row(block) for block in file.blocks] for file in release.files},
        "deltas": [fields(reference) for reference in release.deltas],
    }
    if release.base is not None:
        document["base"] = fields(release.base)
    return canonical_json(document)


def parse_release(data: bytes) -> Release:
    """Read a release, whose bytes have been verified.

    Raises:
        TrustError: They are no release of the format that this build knows.
    """
    return parsed(data, "release", RELEASE_FORMAT, _release)


def _release(reader: Reader) -> Release:
    base = reader.optional("base", lambda key: _base(reader.table(key)))
    release = Release(
        name=matching(reader, "name", NAME),
        version=matching(reader, "version", NAME),
        target=matching(reader, "target", NAME),
        bundle=matching(reader, "bundle", DIGEST),
        base=base,
        key=matching(reader, "key", DIGEST),
        memory_bytes=count(reader, "memory_bytes"),
        files=_files(reader, reader.table("files")),
        deltas=tuple(_reference(table) for table in reader.tables("deltas")),
    )
    reader.end()
    return release


def _files(reader: Reader, table: Reader) -> tuple[ReleasedFile, ...]:
    files = []
    for name, rows in table.named(list).items():
        if not _PATH.fullmatch(name):
            raise reader.fault("files", f"has '{name}', which is not an allowed file name")
        blocks = tuple(_block(reader, name, row) for row in rows)
        files.append(ReleasedFile(name=name, blocks=blocks))
    if MANIFEST_NAME not in {file.name for file in files}:
        raise reader.fault("files", f"does not list {MANIFEST_NAME}")
    return tuple(files)


def _block(reader: Reader, name: str, row: Any) -> Block:
    words = row.split(" ") if isinstance(row, str) else []
    match words:
        case [digest, size, stored] if DIGEST.fullmatch(digest):
            block = Block(id=digest, size=digits(size), stored=digits(stored))
            if 0 < block.size <= BLOCK_BYTES and 0 < block.stored <= MAX_STORED_BYTES:
                return block
    raise reader.fault(f"files.{name}", "has a row that is not 'digest size stored'")


def _reference(reader: Reader) -> DeltaReference:
    reference = DeltaReference(
        bundle=matching(reader, "bundle", DIGEST),
        index=matching(reader, "index", DIGEST),
        index_bytes=count(reader, "index_bytes", most=MAX_RELEASE_BYTES),
        stored=count(reader, "stored"),
    )
    reader.end()
    return reference


def _base(reader: Reader) -> Base:
    name, bundle = matching(reader, "name", NAME), matching(reader, "bundle", DIGEST)
    reader.end()
    return Base(name=name, bundle=bundle)


def _row(block: Block) -> str:
    return f"{block.id} {block.size} {block.stored}"
