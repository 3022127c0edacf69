"""The contract of fetchers, kept by every one of them."""

import contextlib

import pytest
from outpost_runtime.errors import ConfigurationError, FetchError, NotFoundError
from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.counting import CountingFetcher, Traffic
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.fetch.folder import FolderFetcher
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.fetch.retry import RetryingFetcher
from outpost_runtime.update.fetch.sources import open_source
from outpost_runtime.update.fetch.throttle import Bandwidth, ThrottledFetcher
from outpost_runtime.update.release import block_path

from tests.support.certificates import make_certificate
from tests.support.http_server import HttpServer, chunked, ignores_range, until_closed
from tests.support.mirrors import running_mirror
from tests.support.shipments import name_of
from tests.support.sources import noise

LARGE_BYTES, SMALL_BYTES = noise(2_500_000), b"0123456789"
LARGE = f"targets/family/{name_of(LARGE_BYTES)}.large-1-cpu-int8.json"
SMALL = block_path(name_of(SMALL_BYTES))
FILES = {
    "metadata/timestamp.json": b'{"signed": {}}\n',
    "metadata/1.root.json": b"",
    LARGE: LARGE_BYTES,
    SMALL: SMALL_BYTES,
}
LIMIT = 1 << 22


def _with_404(fault):
    def either(exchange):
        known = exchange.path.lstrip("/") in exchange.server.files
        fault(exchange) if known else exchange.reply(404, b"")

    return either


FAULTS = {
    "http": None,
    "https": None,
    "http without ranges": ignores_range,
    "http chunked": chunked,
    "http until closed": until_closed,
}
WRAPPED = {
    "folder": FolderFetcher,
    "retrying": lambda folder: RetryingFetcher(FolderFetcher(folder), sleep=lambda _: None),
    "throttled": lambda folder: ThrottledFetcher(FolderFetcher(folder), Bandwidth(1e9)),
    "counting": lambda folder: CountingFetcher(FolderFetcher(folder), Traffic()),
    "failover": lambda folder: FailoverFetcher(
        [FolderFetcher(folder / "gone"), FolderFetcher(folder)]
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture(scope="module", params=[*FAULTS, *WRAPPED, "mirror"])
def opened(request, folder, tmp_path_factory):
    """What makes a fetcher of every kind; servers stay for all tests."""
    if request.param in WRAPPED:
        yield lambda: WRAPPED[request.param](folder)
        return
    if request.param == "mirror":
        with running_mirror([FolderFetcher(folder)], tmp_path_factory.mktemp("mirror")) as url:
            fetcher = HttpFetcher(url)
            yield lambda: fetcher
            fetcher.close()
        return
    bundle, tls = make_certificate(folder) if request.param == "https" else (None, None)
    with HttpServer(dict(FILES), tls) as server, contextlib.ExitStack() as stack:
        fault = FAULTS[request.param]
        server.always = None if fault is None else _with_404(fault)
        fetcher = HttpFetcher(server.url, ca_bundle=bundle)
        stack.callback(fetcher.close)
        yield lambda: fetcher


@pytest.fixture
def fetcher(opened):
    return opened()


@pytest.mark.parametrize("path", FILES)
def test_a_file_comes_whole(fetcher, path):
    assert read_whole(fetcher, path, limit=LIMIT) == FILES[path]


def test_no_piece_is_larger_than_a_mebibyte(fetcher):
    pieces = list(fetcher.read(LARGE, limit=LIMIT))
    assert b"".join(pieces) == FILES[LARGE]
    assert 0 < min(map(len, pieces)) <= max(map(len, pieces)) <= 1 << 20


@pytest.mark.parametrize("start", range(11))
def test_a_read_goes_on_at_any_byte_and_gives_nothing_at_the_end(fetcher, start):
    pieces = fetcher.read(SMALL, start=start, limit=LIMIT)
    assert b"".join(pieces) == FILES[SMALL][start:]


@pytest.mark.parametrize("start", [1, 999_999, 1 << 20, 2_499_999, 2_500_000])
def test_a_read_of_a_large_file_goes_on_at_any_byte(fetcher, start):
    pieces = fetcher.read(LARGE, start=start, limit=LIMIT)
    assert b"".join(pieces) == FILES[LARGE][start:]


def test_a_file_that_is_shorter_than_what_is_here_already_is_refused(fetcher):
    with pytest.raises(FetchError):
        list(fetcher.read(SMALL, start=11, limit=LIMIT))


def test_a_file_of_exactly_the_limit_comes_and_a_longer_one_is_refused(fetcher):
    assert read_whole(fetcher, SMALL, limit=10) == FILES[SMALL]
    for start in (0, 5):
        with pytest.raises(FetchError):
            list(fetcher.read(SMALL, start=start, limit=9))


def test_never_more_than_the_limit_is_given(fetcher):
    came = []
    with pytest.raises(FetchError):
        came.extend(fetcher.read(LARGE, limit=1_000_000))
    assert sum(map(len, came)) <= 1_000_000


@pytest.mark.parametrize("path", ["metadata/2.root.json", "nowhere/at/all"])
def test_a_file_that_is_not_there_is_not_found(fetcher, path):
    with pytest.raises(NotFoundError):
        list(fetcher.read(path, limit=LIMIT))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a/.", "a b", "a\0", "a%2e", "a?b=c",
     "a#b", "http://elsewhere/x", "x" * 600],
)  # fmt: skip
def test_a_path_that_is_no_plain_relative_one_is_refused(fetcher, path):
    with pytest.raises(FetchError, match="is no path of a repository"):
        list(fetcher.read(path, limit=LIMIT))


def test_a_read_that_is_given_up_in_the_middle_does_not_spoil_the_next(fetcher):
    for _ in range(3):
        pieces = fetcher.read(LARGE, limit=LIMIT)
        assert FILES[LARGE].startswith(next(pieces))
        pieces.close()
    assert read_whole(fetcher, SMALL, limit=LIMIT) == FILES[SMALL]


def test_a_location_is_a_url_or_a_folder(tmp_path):
    assert open_source("https://updates.test/models").label == "https://updates.test/models"
    assert open_source(str(tmp_path)).label == str(tmp_path)
    with pytest.raises(ConfigurationError):
        open_source("ftp://updates.test/models")
