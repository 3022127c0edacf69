"""A repository behind HTTP or HTTPS.

Whatever the server does, a read ends: time-outs bound silence, a meter bounds slowness and
length, redirects are counted, and nothing here asks twice for the same bytes but once, after a
416 that does not say how long the file is.
"""

import base64
import contextlib
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from outpost_runtime.errors import ConfigurationError, FetchError
from outpost_runtime.update.fetch.answer import (
    NOT_SATISFIABLE,
    OK,
    PARTIAL,
    REDIRECTS,
    Body,
    Question,
    Version,
    body_of,
    is_at_end,
)
from outpost_runtime.update.fetch.connection import USER_AGENT, metered_pool, tls_context
from outpost_runtime.update.fetch.meter import Meter, Patience
from outpost_runtime.update.fetch.paths import check_safe

_PIECE = 256 << 10
_MOST_REDIRECTS = 5
_REMEMBERED = 64
_OVERHEAD = 256 << 10
"""Headers, framing and trailers that an answer may have beside its body."""

_WORTH_DRAINING = 16 << 10
_PROBLEMS: tuple[tuple[type[HTTPError], str], ...] = (
    (NameResolutionError, "its name cannot be resolved"),
    (ConnectTimeoutError, "it cannot be reached in time"),
    (NewConnectionError, "it cannot be reached"),
    (ReadTimeoutError, "it fell silent"),
    (SSLError, "TLS failed"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """A repository's URL, taken apart; ``authorization`` and ``query`` are secrets."""

    parts: SplitResult
    label: str
    authorization: str | None

    def url(self, path: str) -> str:
        host = self.parts.netloc.rpartition("@")[2]
        folder = self.parts.path.rstrip("/")
        query = f"?{self.parts.query}" if self.parts.query else ""
        return f"{self.parts.scheme}://{host}{folder}/{path}{query}"

    def __repr__(self) -> str:
        return f"_Base({self.label})"


class HttpFetcher:
    """A repository's files over HTTP.

    Args:
        url: ``https://…`` or ``http://…``. User and password in it are sent to this server alone, a
            query (a signed URL's) with every file; neither is ever shown.
        ca_bundle: Certificates (PEM) that count instead of the system's.
        window: Bytes that may arrive unread, about; for a bandwidth cap, under which blocks would
            otherwise come in bursts at the line's speed. None for what the system thinks best.

    Raises:
        ConfigurationError: The URL is none, or the certificates cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_bundle: Path | None = None,
        patience: Patience | None = None,
        window: int | None = None,
    ) -> None:
        patience = patience or Patience()
        self._base = _parse_base(url)
        self._meter = Meter(self._base.label, patience)
        # Loading the system's certificates takes longer than a poll, which HTTP need not pay.
        needs_tls = self._base.parts.scheme == "https" or ca_bundle is not None
        context = tls_context(ca_bundle) if needs_tls else None
        self._pool = metered_pool(self._meter, patience, context, window)
        self._piece = min(_PIECE, window or _PIECE)
        self._known: OrderedDict[str, Version] = OrderedDict()

    @property
    def label(self) -> str:
        """The URL without user, password and query."""
        return self._base.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        check_safe(path)
        question = self._question(path, start, limit)
        with self._answer(question) as response:
            if response.status == NOT_SATISFIABLE and start:
                at_end = is_at_end(question, response.headers)
                if at_end is not None:
                    self._check_end(question, at_end=at_end)
                    return
            else:
                yield from self._body(question, response)
                return
        # The whole file, then: it is the only way to learn whether there is more of it.
        question = self._question(path, 0, limit)
        with self._answer(question) as response:
            yield from _without(start, self._body(question, response))

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def _question(self, path: str, start: int, limit: int) -> Question:
        known = self._known.get(path, Version())
        return Question(source=self.label, path=path, start=start, limit=limit, known=known)

    def _check_end(self, question: Question, *, at_end: bool) -> None:
        if not at_end:
            self._known.pop(question.path, None)
            raise question.refused(f"it has no byte {question.start:,}")

    @contextlib.contextmanager
    def _answer(self, question: Question) -> Iterator[urllib3.BaseHTTPResponse]:
        with self._foreign_errors(question):
            response = self._ask(question)
        try:
            yield response
        finally:  # one that was read to its end has given its connection back already
            response.close()
            response.release_conn()

    def _ask(self, question: Question) -> urllib3.BaseHTTPResponse:
        url = self._base.url(question.path)
        for _ in range(_MOST_REDIRECTS + 1):
            self._meter.begin(2 * question.limit + _OVERHEAD)
            response = self._pool.request(
                "GET",
                url,
                headers=question.headers() | self._own_headers(url),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            if response.status in (OK, PARTIAL):
                return response
            _drain(response)
            if response.status not in REDIRECTS:
                return response
            url = _redirected(question, url, response.headers.get("Location"))
        raise question.refused(f"it redirects more than {_MOST_REDIRECTS} times")

    def _own_headers(self, url: str) -> dict[str, str]:
        headers = {"User-Agent": USER_AGENT}
        if self._base.authorization and _origin(urlsplit(url)) == _origin(self._base.parts):
            headers["Authorization"] = self._base.authorization
        return headers

    def _body(self, question: Question, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            body = body_of(question, response.status, response.headers)
        except FetchError:
            self._known.pop(question.path, None)
            raise
        self._remember(question.path, body.version)
        yield from _without(body.skip, self._raw(question, body, response))
        if not body.is_last:
            raise question.refused("it gave less than was asked for", retry_after=0.0)

    def _raw(
        self, question: Question, body: Body, response: urllib3.BaseHTTPResponse
    ) -> Iterator[bytes]:
        begin, count = question.start - body.skip, 0
        while True:
            with self._foreign_errors(question):
                piece = response.read1(self._piece)
            if not piece:
                break
            count += len(piece)
            if begin + count > question.limit:
                raise question.refused(f"it is larger than the {question.limit:,} bytes allowed")
            yield piece
        if count < (body.length or body.skip):
            raise question.refused(f"it ended after {begin + count:,} bytes", retry_after=None)

    def _remember(self, path: str, version: Version) -> None:
        self._known[path] = version
        self._known.move_to_end(path)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    @contextlib.contextmanager
    def _foreign_errors(self, question: Question) -> Iterator[None]:
        try:
            yield
        except (HTTPError, OSError, ValueError) as error:
            # From None: their texts may hold the URL, and so a signed URL's secret.
            raise question.refused(_problem(error), retry_after=None) from None


def _parse_base(url: str) -> _Base:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or ""
    except ValueError:
        parts, port, host = urlsplit(""), "", ""
    if parts.scheme not in ("http", "https") or not host or parts.fragment:
        raise ConfigurationError(
            "A repository's URL must begin with https:// or http:// and name a host.",
            hint="Write it like https://updates.example/models.",
        )
    host = f"[{host}]" if ":" in host else host
    user = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        user = f"Basic {base64.b64encode(pair.encode()).decode()}"
    label = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
    return _Base(parts=parts, label=label, authorization=user)


def _problem(error: Exception) -> str:
    reason = error.args[0] if error.args else None
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {reason.verify_message}"
    known = (text for kind, text in _PROBLEMS if isinstance(error, kind))
    return next(known, f"the connection broke ({type(error).__name__})")


def _redirected(question: Question, url: str, location: str | None) -> str:
    try:
        target = urlsplit(urljoin(url, location or ""))
        origin = _origin(target)
    except ValueError:
        raise question.refused("it redirects to nowhere") from None
    if location is None or not origin[1] or origin[0] not in ("http", "https"):
        raise question.refused("it redirects to nowhere")
    if url.startswith("https:") and origin[0] != "https":
        raise question.refused("it redirects from HTTPS to an open connection")
    host = target.netloc.rpartition("@")[2]  # its credentials are not ours to send
    return target._replace(netloc=host, fragment="").geturl()


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _without(skip: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if skip < len(piece):
            yield piece[skip:] if skip else piece
        skip = max(0, skip - len(piece))


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    # A small body of no interest is read, so that the connection can be used again: an idle box
    # asks for a root that is not there yet, and a second TLS handshake costs more than that.
    rest = _WORTH_DRAINING
    with contextlib.suppress(HTTPError, OSError, FetchError):
        while rest > 0 and (piece := response.read1(rest)):
            rest -= len(piece)
    if rest <= 0:
        response.close()
