"""PURE: which bytes of a file a request asks for (RFC 9110, 13 and 14)."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Bytes of a file, from ``start`` up to but without ``end``."""

    start: int
    end: int


def selected(
    header: str | None, condition: str | None, *, etag: str, size: int
) -> Selection | None:
    """Read ``Range`` and ``If-Range``.

    A range of another unit, several ranges, a malformed one, and one under a condition that does
    not hold are ignored, as the RFC allows: the whole file answers all of them.

    Returns:
        The bytes; an empty selection where the file has none of those asked for; None for the
        whole file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match[0] == "bytes=-" or (condition is not None and condition != etag):
        return None
    first, last = match[1], match[2]
    if not first:  # the last so many bytes
        return Selection(start=max(0, size - int(last)) if int(last) else size, end=size)
    start = int(first)
    if last and int(last) < start:
        return None
    end = min(size, int(last) + 1) if last else size
    return Selection(start=start, end=max(start, end)) if start < size else _nothing(size)


def _nothing(size: int) -> Selection:
    return Selection(start=size, end=size)
