"""A delta index: shorter ways from one bundle's blocks to another's.

It hangs on a release by its digest; its schema is documented in ``docs/update-format.md``.
"""

from dataclasses import dataclass
from typing import Any

from outpost_runtime.documents import Reader, canonical_json
from outpost_runtime.update.release import MAX_STORED_BYTES
from outpost_runtime.update.signed_fields import DIGEST, digits, parsed

DELTA_FORMAT = "outpost-delta/1"


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


def delta_path(index: str) -> str:
    """Return where a delta index lies in a repository."""
    return f"deltas/{index}.json"


def encode_delta_index(index: DeltaIndex) -> bytes:
    """Return the canonical bytes of a delta index."""
    rows = [f"{d.source} {d.block} {d.id} {d.stored}" for d in index.deltas]
    return canonical_json({"format": DELTA_FORMAT, "deltas": rows})


def parse_delta_index(data: bytes) -> DeltaIndex:
    """Read a delta index, whose bytes have been verified.

    Raises:
        TrustError: They are no delta index of the format that this build knows.
    """
    return parsed(data, "delta index", DELTA_FORMAT, _delta_index)


def _delta_index(reader: Reader) -> DeltaIndex:
    index = DeltaIndex(deltas=tuple(_delta(reader, row) for row in reader.items("deltas")))
    reader.end()
    return index


def _delta(reader: Reader, row: Any) -> Delta:
    words = row.split(" ") if isinstance(row, str) else []
    match words:
        case [source, block, digest, stored] if all(map(DIGEST.fullmatch, words[:3])):
            delta = Delta(source=source, block=block, id=digest, stored=digits(stored))
            if 0 < delta.stored <= MAX_STORED_BYTES:
                return delta
    raise reader.fault("deltas", "has a row that is not 'source block digest stored'")
