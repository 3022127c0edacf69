"""One file of TUF metadata: read, checked against keys and against how it was named.

Pure. Whatever the bytes are, what comes out is verified metadata or a :class:`TrustError`.
Stricter than TUF asks: a named file comes with version, length and SHA-256, and one key that
is listed under two ids counts once.

Two fields are ours, both signed: ``published`` in root and timestamps says when (seconds since
1970), and ``medium`` marks a timestamp that is for sticks. The library's types are imported
from here.
"""

import enum
import hashlib
import re
from typing import Any, TypeGuard, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # it marks no name as exported
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from outpost_runtime.errors import TrustError
from outpost_runtime.update.signed_fields import MAX_COUNTER

__all__ = [
    "FOREIGN",
    "MEDIUM",
    "PUBLISHED",
    "DelegatedRole",
    "Delegations",
    "Key",
    "Medium",
    "MetaFile",
    "Metadata",
    "Role",
    "Root",
    "Signed",
    "SignedT",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "check_bytes",
    "check_described",
    "check_signed",
    "digest_of",
    "is_digest",
    "medium_of",
    "parse",
    "published",
    "verify",
    "verify_named",
    "whole",
]

PUBLISHED = "published"
MEDIUM = "medium"

FOREIGN = "Update the runtime on this box, or publish with an exporter of this version."
_MIXED = "The source may be in the middle of a publication: try again, or another source."
_STRANGE = "It comes from another repository, or was changed: use nothing of it."
_DIGEST = re.compile(r"[0-9a-f]{64}")

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)


class Medium(enum.Enum):
    """What a timestamp is for; its value is the file's name."""

    NETWORK = "timestamp"
    STICK = "stick"


def parse(kind: type[SignedT], data: bytes, name: str) -> Metadata[SignedT]:
    """Read metadata of one kind; nobody's signature is checked.

    Raises:
        TrustError: It is none.
    """
    try:
        metadata = Metadata[SignedT].from_bytes(data)
    except RepositoryError as error:
        raise TrustError(f"{name} is no TUF metadata.", hint=_MIXED) from error
    if not isinstance(metadata.signed, kind) or not whole(metadata.signed.version):
        raise TrustError(f"{name} is another kind of metadata.", hint=_MIXED)
    return metadata


def check_signed(
    metadata: Metadata[SignedT], delegator: Root | Targets, role: str, name: str
) -> None:
    """Refuse metadata that too few of a role's keys have signed.

    Raises:
        TrustError: Fewer have than the delegator demands.
    """
    try:
        payload, signatures = metadata.signed_bytes, metadata.signatures
        result = delegator.get_verification_result(role, payload, signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"{name} cannot be checked against the keys of {role}.") from error
    signed = len({repr(key.keyval) for key in result.signed.values()})
    if signed < result.threshold:
        raise TrustError(
            f"{name} is signed by {signed} of the keys that are trusted for it; "
            f"{result.threshold} must have signed.",
            hint=_STRANGE,
        )


def verify(
    kind: type[SignedT], data: bytes, delegator: Root | Targets, role: str, name: str
) -> SignedT:
    """Read metadata and check who signed it.

    Raises:
        TrustError: It is none, or too few of the role's keys have signed it.
    """
    metadata = parse(kind, data, name)
    check_signed(metadata, delegator, role, name)
    return metadata.signed


def verify_named(
    kind: type[SignedT], data: bytes, delegator: Root | Targets, role: str, meta: MetaFile
) -> SignedT:
    """Read the metadata that other metadata names, and check who signed it.

    Raises:
        TrustError: It is another file or version, or too few of the role's keys have signed it.
    """
    name = f"{role}.json"
    check_bytes(data, meta.length, digest_of(meta), name)
    signed = verify(kind, data, delegator, role, name)
    if signed.version != meta.version:
        raise TrustError(f"{name} is version {signed.version}; {meta.version} was named.")
    return signed


def check_bytes(data: bytes, length: int | None, sha256: str, name: str) -> None:
    """Refuse other bytes than were named.

    Raises:
        TrustError: Length or SHA-256 differ.
    """
    if len(data) != length or hashlib.sha256(data).hexdigest() != sha256:
        raise TrustError(f"{name} is not the file that the metadata names.", hint=_MIXED)


def check_described(meta: MetaFile, name: str) -> None:
    """Refuse to go by a name without version, length and SHA-256.

    Raises:
        TrustError: One of them is missing, or no such thing.
    """
    digest = (meta.hashes or {}).get("sha256", "")
    if not (whole(meta.version) and whole(meta.length) and is_digest(digest)):
        raise TrustError(f"{name} is named without version, length and SHA-256.", hint=FOREIGN)


def digest_of(meta: MetaFile) -> str:
    """Return the SHA-256 of a file that passed :func:`check_described`."""
    return (meta.hashes or {})["sha256"]


def published(signed: Signed) -> int:
    """Return when a root or timestamp says that it was published, in seconds since 1970.

    Raises:
        TrustError: It does not say so, or says that it expired before.
    """
    time = signed.unrecognized_fields.get(PUBLISHED)
    if not whole(time) or time >= signed.expires.timestamp():
        raise TrustError(f"The {signed.type} does not say when it was published.", hint=FOREIGN)
    return time


def medium_of(timestamp: Timestamp) -> Medium:
    """Return what a timestamp is for."""
    marked = MEDIUM in timestamp.unrecognized_fields
    return Medium.STICK if marked else Medium.NETWORK


def whole(value: Any) -> TypeGuard[int]:
    """Say whether a signed value is a version, a length or a time: a bounded whole number."""
    return type(value) is int and 0 < value <= MAX_COUNTER


def is_digest(text: str) -> bool:
    """Say whether a text is a SHA-256 in lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None
