"""PURE: what an HTTP answer is worth to somebody who has the first bytes already (RFC 9110).

Rules:

1. 206 counts only with exactly one Content-Range that begins where we asked, ends before
   its total, and fits Content-Length.
2. 200 to a range request is the whole file: what is here already is skipped.
3. Pieces of two states of a file are not joined in silence: entity tag, date and size of the answer
   must not contradict what the same file's last answer said. Servers behind one name may
   disagree about tags, so whoever asks again is not held to what was said before.
4. If-Range is sent with a strong entity tag, or with a date that is strong (at least
   a second older than the answer that brought it).
5. Packed answers are refused: we asked for identity, and offsets count its bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from outpost_runtime.errors import FetchError, NotFoundError

OK = 200
PARTIAL = 206
NOT_SATISFIABLE = 416
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Object stores answer 403 for a file that is not there to whoever may not list them.
_ABSENT = frozenset({403, 404, 410})
_MAYBE_LATER = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_NEVER = float("inf")

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,15})")
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """What tells one state of a file from another."""

    etag: str | None = None
    modified: str | None = None
    size: int | None = None

    @property
    def condition(self) -> str | None:
        """What to send as If-Range, or None where nothing is strong enough."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def contradicts(self, other: "Version") -> bool:
        """Whether both cannot be the same state of a file."""
        if None not in (self.size, other.size) and self.size != other.size:
            return True
        if self.etag is not None and other.etag is not None:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        return None not in (self.modified, other.modified) and self.modified != other.modified


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """How to read an answer's body.

    Attributes:
        skip: Bytes at its beginning that are here already.
        length: Bytes of the whole body, or None where the server did not say.
        is_last: Whether the file ends with it.
    """

    skip: int
    length: int | None
    is_last: bool
    version: Version


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What was asked.

    Attributes:
        source: The server, for messages.
        start: Bytes that are here already.
        limit: Largest size of the whole file.
        known: What earlier answers said of the file.
    """

    source: str
    path: str
    start: int
    limit: int
    known: Version

    def headers(self) -> dict[str, str]:
        """What to send."""
        headers = {"Accept-Encoding": "identity"}
        if self.start:
            headers["Range"] = f"bytes={self.start}-"
            if self.known.condition is not None:
                headers["If-Range"] = self.known.condition
        return headers

    def refused(self, problem: str, *, retry_after: float | None = _NEVER) -> FetchError:
        """Make the error for an answer of no use."""
        return FetchError(f"{self.path} of {self.source}: {problem}.", retry_after=retry_after)


def body_of(question: Question, status: int, headers: Mapping[str, str]) -> Body:
    """Judge an answer that carries the file.

    Args:
        headers: Names in any case; values of repeated ones joined by commas.

    Raises:
        NotFoundError: The server has no such file.
        FetchError: The answer is of no use.
    """
    if status not in (OK, PARTIAL):
        raise _failure(question, status, headers)
    _check_not_packed(question, headers)
    body = _whole(question, headers) if status == OK else _part(question, headers)
    size = body.version.size
    if size is not None and size > question.limit:
        raise question.refused(f"{size:,} bytes are more than the {question.limit:,} allowed")
    if size is not None and size < question.start:
        raise question.refused(f"it has {size:,} bytes, and {question.start:,} are here already")
    if question.start and body.version.contradicts(question.known):
        raise question.refused("it was replaced while it was read", retry_after=0.0)
    return body


def is_at_end(question: Question, headers: Mapping[str, str]) -> bool | None:
    """Judge a 416: whether we have the file already; None where the server does not say."""
    match = _UNSATISFIED.fullmatch(headers.get("Content-Range", ""))
    return None if match is None else int(match[1]) == question.start


def _whole(question: Question, headers: Mapping[str, str]) -> Body:
    length = _length(question, headers)
    return Body(skip=question.start, length=length, is_last=True, version=_version(headers, length))


def _part(question: Question, headers: Mapping[str, str]) -> Body:
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if not question.start or match is None:
        raise question.refused("it answered with a part that nobody asked for")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first != question.start or last < first or (total is not None and last >= total):
        raise question.refused(f"asked for bytes from {question.start:,}, it sent {match[0]}")
    if _length(question, headers) not in (None, last - first + 1):
        raise question.refused("its Content-Length is not that of its Content-Range")
    return Body(
        skip=0,
        length=last - first + 1,
        is_last=total is None or last + 1 == total,
        version=_version(headers, total),
    )


def _length(question: Question, headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length")
    if text is None or "Transfer-Encoding" in headers:  # which overrides it, RFC 9112, 6.3
        return None
    if not _NUMBER.fullmatch(text):
        raise question.refused("its Content-Length is no number")
    return int(text)


def _version(headers: Mapping[str, str], size: int | None) -> Version:
    return Version(etag=headers.get("ETag"), modified=_strong_date(headers), size=size)


def _strong_date(headers: Mapping[str, str]) -> str | None:
    text = headers.get("Last-Modified")
    modified, sent = _date(text), _date(headers.get("Date"))
    if modified is None or sent is None or (sent - modified).total_seconds() < 1:
        return None
    return text


def _check_not_packed(question: Question, headers: Mapping[str, str]) -> None:
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    transfer = headers.get("Transfer-Encoding", "chunked").strip().lower()
    if coding not in ("identity", "") or transfer != "chunked":
        raise question.refused("it came packed, though it was asked for as it is")


def _failure(question: Question, status: int, headers: Mapping[str, str]) -> Exception:
    if status in _ABSENT:
        return NotFoundError(f"{question.source} has no {question.path} (HTTP {status}).")
    if status in _MAYBE_LATER or status >= _SERVER_ERROR:
        return question.refused(f"HTTP {status}", retry_after=_retry_after(headers))
    return question.refused(f"HTTP {status}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    # Against the server's own clock: this box may think that it is 1970.
    then, now = _date(text), _date(headers.get("Date"))
    return None if then is None or now is None else max(0.0, (then - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
