"""Strict reading of what a publisher signs: what its documents have in common.

Rules: unknown keys are errors; names, paths and digests are of a plain form; identities are SHA-256
in lower-case hexadecimal digits; every number has a bound.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from outpost_runtime.documents import Reader, parse_json_object
from outpost_runtime.errors import InvalidInputError, TrustError

MAX_COUNTER = (1 << 53) - 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")

DocumentT = TypeVar("DocumentT")


def names(reader: Reader, key: str) -> tuple[str, ...]:
    """Take a list of names; absent is none."""
    names = reader.optional(key, lambda key: reader.list_of(key, str)) or []
    if not all(map(NAME.fullmatch, names)):
        raise reader.fault(key, "must be names of lower-case letters, digits, '.', '_', '-'")
    return tuple(names)


def matching(reader: Reader, key: str, pattern: re.Pattern[str]) -> str:
    """Take a text that matches a pattern; required."""
    value = reader.string(key)
    if not pattern.fullmatch(value):
        raise reader.fault(key, f"is '{value[:80]}', which is not allowed")
    return value


def count(reader: Reader, key: str, *, most: int = MAX_COUNTER) -> int:
    """Take a number between 0 and ``most``; required."""
    value = reader.integer(key)
    if not 0 <= value <= most:
        raise reader.fault(key, f"must be between 0 and {most}")
    return value


def digits(text: str) -> int:
    """Return a number of up to nine digits, or -1."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def fields(value: Any) -> dict[str, Any]:
    """Return a document of plain fields as JSON shows it."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def parsed(data: bytes, what: str, known: str, read: Callable[[Reader], DocumentT]) -> DocumentT:
    """Read a document whose bytes have been verified.

    Raises:
        TrustError: They are none of the format that this build knows.
    """
    try:
        reader = parse_json_object(data, path=f"{what}:")
        found = reader.string("format")
        if found != known:
            raise reader.fault("format", f"is '{found[:80]}'; this build reads '{known}'")
        return read(reader)
    except InvalidInputError as error:
        raise foreign(error) from error


def foreign(error: InvalidInputError) -> TrustError:
    """Make the error for a document that this build cannot read."""
    return TrustError(
        f"It was published for another build of Outpost: {error.message}",
        hint="Update the runtime on this box, or publish it with an exporter of this version.",
    )
