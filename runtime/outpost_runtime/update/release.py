"""What a publisher signs of a bundle: the release, its offer, and its deltas.

Schemas and paths are documented in ``docs/update-format.md``.

* :class:`Offer` stands in signed targets metadata (``custom``): what it is and for whom.
* :class:`Release` is the signed target itself: the bundle's files as lists of blocks.
* :class:`DeltaIndex` hangs on a release by digest: shorter ways from a predecessor's blocks.

Rules: unknown keys are errors; file names are plain relative paths; identities are SHA-256 in
lower-case hexadecimal digits; every number has a bound.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError, TrustError
from outpost_runtime.manifest import MANIFEST_NAME

RELEASE_FORMAT = "outpost-release/1"
DELTA_FORMAT = "outpost-delta/1"
BLOCK_BYTES = 1 << 20
"""Largest plaintext of a block; publishers cut here and at tensor starts."""

MAX_STORED_BYTES = BLOCK_BYTES + (1 << 14)
"""Largest block as it is stored: encrypted, with everything that encryption adds."""

MAX_RELEASE_BYTES = 32 << 20
MAX_COUNTER = (1 << 53) - 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")

DocumentT = TypeVar("DocumentT")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A shorter way to a block, from another block.

    Attributes:
        source: The block that it starts from.
        block: The block that it makes.
        id: SHA-256 of the delta's stored (encrypted) bytes; it lies among the blocks.
        stored: Its stored bytes.
    """

    source: str
    block: str
    id: str
    stored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaIndex:
    """All deltas from one bundle to another."""

    deltas: tuple[Delta, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """For whom a release is, and when.

    Attributes:
        rings: Devices of these rings; empty for every ring.
        percent: Share of them, 0 to 100; 0 halts.
        not_before: Seconds since 1970 (UTC), or None.
        not_after: The same; later, nobody begins to install it.
    """

    rings: tuple[str, ...] = ()
    percent: int = 100
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What signed targets metadata says of a release.

    Attributes:
        release: Counts up with every publication of a name; a device never goes below.
        bundle: The bundle's digest.
        devices: Device models that it is for; empty for every model.
        minimum_runtime: Oldest runtime version that can run it.
    """

    name: str
    version: str
    release: int
    target: str
    bundle: str
    devices: tuple[str, ...] = ()
    minimum_runtime: str = "0.1.0"
    rollout: Rollout = Rollout()


def release_path(family: str, offer: Offer) -> str:
    """Return the TUF target path of a release."""
    return f"{family}/{offer.name}-{offer.release}-{offer.target}.json"


def block_path(block_id: str) -> str:
    """Return where a block or a delta lies in a repository."""
    return f"blocks/{block_id[:2]}/{block_id}"


def delta_path(index: str) -> str:
    """Return where a delta index lies in a repository."""
    return f"deltas/{index}.json"


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
        "deltas": [_fields(reference) for reference in release.deltas],
    }
    if release.base is not None:
        document["base"] = _fields(release.base)
    return canonical_json(document)


def parse_release(data: bytes) -> Release:
    """Read a release, whose bytes have been verified.

    Raises:
        TrustError: They are no release of the format that this build knows.
    """
    return _parsed(data, "release", RELEASE_FORMAT, _release)


def encode_delta_index(index: DeltaIndex) -> bytes:
    """Return the canonical bytes of a delta index."""
    rows = [f"{d.source} {d.block} {d.id} {d.stored}" for d in index.deltas]
    return canonical_json({"format": DELTA_FORMAT, "deltas": rows})


def parse_delta_index(data: bytes) -> DeltaIndex:
    """Read a delta index, whose bytes have been verified.

    Raises:
        TrustError: They are no delta index of the format that this build knows.
    """
    return _parsed(data, "delta index", DELTA_FORMAT, _delta_index)


def encode_offer(offer: Offer) -> dict[str, Any]:
    """Return an offer as it stands in targets metadata: without what is as always."""
    document = _fields(offer)
    document["devices"] = list(offer.devices)
    rollout = {k: v for k, v in _fields(offer.rollout).items() if v is not None}
    document["rollout"] = rollout | {"rings": list(offer.rollout.rings)}
    if offer.rollout == Rollout():
        del document["rollout"]
    if not offer.devices:
        del document["devices"]
    return document


def parse_offer(custom: Any) -> Offer:
    """Read an offer from verified targets metadata.

    Raises:
        TrustError: It is none that this build knows.
    """
    try:
        reader = Reader(custom, path="offer:")
        offer = Offer(
            name=_matching(reader, "name", _NAME),
            version=_matching(reader, "version", _NAME),
            release=_count(reader, "release"),
            target=_matching(reader, "target", _NAME),
            bundle=_matching(reader, "bundle", _DIGEST),
            devices=_names(reader, "devices"),
            minimum_runtime=reader.string("minimum_runtime", "0.1.0"),
            rollout=reader.optional("rollout", lambda key: _rollout(reader.table(key)))
            or Rollout(),
        )
        reader.end()
    except InvalidInputError as error:
        raise _foreign(error) from error
    return offer


def _rollout(reader: Reader) -> Rollout:
    rollout = Rollout(
        rings=_names(reader, "rings"),
        percent=_count(reader, "percent", most=100),
        not_before=reader.optional("not_before", lambda key: _count(reader, key)),
        not_after=reader.optional("not_after", lambda key: _count(reader, key)),
    )
    reader.end()
    return rollout


def _release(reader: Reader) -> Release:
    base = reader.optional("base", lambda key: _base(reader.table(key)))
    release = Release(
        name=_matching(reader, "name", _NAME),
        version=_matching(reader, "version", _NAME),
        target=_matching(reader, "target", _NAME),
        bundle=_matching(reader, "bundle", _DIGEST),
        base=base,
        key=_matching(reader, "key", _DIGEST),
        memory_bytes=_count(reader, "memory_bytes"),
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
        case [digest, size, stored] if _DIGEST.fullmatch(digest):
            block = Block(id=digest, size=_digits(size), stored=_digits(stored))
            if 0 < block.size <= BLOCK_BYTES and 0 < block.stored <= MAX_STORED_BYTES:
                return block
    raise reader.fault(f"files.{name}", "has a row that is not 'digest size stored'")


def _delta_index(reader: Reader) -> DeltaIndex:
    index = DeltaIndex(deltas=tuple(_delta(reader, row) for row in reader.items("deltas")))
    reader.end()
    return index


def _delta(reader: Reader, row: Any) -> Delta:
    words = row.split(" ") if isinstance(row, str) else []
    match words:
        case [source, block, digest, stored] if all(map(_DIGEST.fullmatch, words[:3])):
            delta = Delta(source=source, block=block, id=digest, stored=_digits(stored))
            if 0 < delta.stored <= MAX_STORED_BYTES:
                return delta
    raise reader.fault("deltas", "has a row that is not 'source block digest stored'")


def _reference(reader: Reader) -> DeltaReference:
    reference = DeltaReference(
        bundle=_matching(reader, "bundle", _DIGEST),
        index=_matching(reader, "index", _DIGEST),
        index_bytes=_count(reader, "index_bytes", most=MAX_RELEASE_BYTES),
        stored=_count(reader, "stored"),
    )
    reader.end()
    return reference


def _base(reader: Reader) -> Base:
    name, bundle = _matching(reader, "name", _NAME), _matching(reader, "bundle", _DIGEST)
    reader.end()
    return Base(name=name, bundle=bundle)


def _names(reader: Reader, key: str) -> tuple[str, ...]:
    names = reader.optional(key, lambda key: reader.list_of(key, str)) or []
    if not all(map(_NAME.fullmatch, names)):
        raise reader.fault(key, "must be names of lower-case letters, digits, '.', '_', '-'")
    return tuple(names)


def _matching(reader: Reader, key: str, pattern: re.Pattern[str]) -> str:
    value = reader.string(key)
    if not pattern.fullmatch(value):
        raise reader.fault(key, f"is '{value[:80]}', which is not allowed")
    return value


def _count(reader: Reader, key: str, *, most: int = MAX_COUNTER) -> int:
    value = reader.integer(key)
    if not 0 <= value <= most:
        raise reader.fault(key, f"must be between 0 and {most}")
    return value


def _digits(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def _row(block: Block) -> str:
    return f"{block.id} {block.size} {block.stored}"


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _parsed(data: bytes, what: str, known: str, read: Callable[[Reader], DocumentT]) -> DocumentT:
    try:
        reader = parse_json_object(data, path=f"{what}:")
        found = reader.string("format")
        if found != known:
            raise reader.fault("format", f"is '{found[:80]}'; this build reads '{known}'")
        return read(reader)
    except InvalidInputError as error:
        raise _foreign(error) from error


def _foreign(error: InvalidInputError) -> TrustError:
    return TrustError(
        f"It was published for another build of Outpost: {error.message}",
        hint="Update the runtime on this box, or publish it with an exporter of this version.",
    )
