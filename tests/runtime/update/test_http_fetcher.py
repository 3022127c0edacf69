"""What servers, proxies and bad links do to a download."""

import logging
import ssl
import time
import traceback

import pytest
from outpost_runtime.errors import ConfigurationError, FetchError, NotFoundError
from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.fetch.meter import Meter, Patience
from outpost_runtime.update.fetch.throttle import Bandwidth, ThrottledFetcher, window_under
from outpost_runtime.update.policy import UpdatePolicy
from outpost_runtime.update.sources import open_sources

from tests.support.certificates import make_certificate
from tests.support.http_server import (
    HttpServer,
    chunked,
    cut_after,
    ignores_range,
    raw,
    redirected,
    repeated_range,
    shifted,
    silent,
    status,
    then_endless,
    with_headers,
)
from tests.support.sources import noise

PATH = "blocks/ab/block"
DATA = noise(100_000)
LIMIT = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\n"
HURRY = Patience(connect_seconds=1.0, silence_seconds=0.4, window_seconds=0.3, least_rate=10_000.0)


@pytest.fixture
def server():
    with HttpServer({PATH: DATA, "moved/block": DATA}) as server:
        yield server


@pytest.fixture
def fetcher(server):
    fetcher = HttpFetcher(server.url, patience=HURRY)
    yield fetcher
    fetcher.close()


def _rest(fetcher, start, limit=LIMIT):
    """Return what comes from a byte on, and the error that ended it."""
    data = bytearray()
    try:
        for piece in fetcher.read(PATH, start=start, limit=limit):
            data += piece
    except (FetchError, NotFoundError) as error:
        return bytes(data), error
    return bytes(data), None


def test_a_server_that_ignores_ranges_costs_time_but_gives_the_right_bytes(server, fetcher):
    server.faults = [ignores_range, chunked]
    for _ in range(2):
        assert _rest(fetcher, 60_000) == (DATA[60_000:], None)


@pytest.mark.parametrize("start", [0, 1, 40_000])
def test_what_came_before_a_cut_is_given_and_is_right(server, fetcher, start):
    server.faults = [cut_after(30_000)]
    data, error = _rest(fetcher, start)
    assert data == DATA[start : start + 30_000]
    assert error is not None


@pytest.mark.incident("a link that is cut", where="between two chunks of an answer")
def test_a_cut_between_two_chunks_is_no_end(server, fetcher):
    server.faults = [raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n")]
    data, error = _rest(fetcher, 0)
    assert data == b"four"
    assert error is not None


RANGE = f"bytes 50000-{len(DATA) - 1}/{len(DATA)}"
LIES = {
    "shifted forward": shifted(1),
    "shifted back": shifted(-1),
    "from zero, as 206": shifted(-50_000),
    "repeated Content-Range": repeated_range,
    "two ranges in one header": with_headers({"Content-Range": f"{RANGE}, {RANGE}"}),
    "multipart": with_headers({"Content-Type": "multipart/byteranges; boundary=x"}),
    "no Content-Range": with_headers({}),
    "other unit": with_headers({"Content-Range": "lines 50000-99999/100000"}),
    "backwards": with_headers({"Content-Range": "bytes 50000-49999/100000"}),
    "beyond its total": with_headers({"Content-Range": "bytes 50000-100000/100000"}),
    "negative": with_headers({"Content-Range": "bytes -50000-99999/100000"}),
    "endless digits": with_headers({"Content-Range": f"bytes 50000-{'9' * 40}/{'9' * 41}"}),
    "wrong Content-Length": with_headers({"Content-Range": "bytes 50000-99998/100000"}),
    "packed": with_headers({"Content-Range": RANGE, "Content-Encoding": "gzip"}),
    "packed whole": with_headers({"Content-Encoding": "br"}, code=200),
    "packed transfer": with_headers({"Content-Range": RANGE, "Transfer-Encoding": "gzip"}),
    "other 2xx": status(204, body=b""),
    "other 3xx": status(304, body=b""),
    "shorter than what is here": raw(HEAD + b"Content-Length: 4\r\n\r\nfour"),
    "negative length": raw(HEAD + b"Content-Length: -4\r\n\r\nfour"),
    "no number": raw(HEAD + b"Content-Length: 0x4\r\n\r\nfour"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": raw(b""),
    "a header without end": raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_not_what_was_asked_for_gives_no_byte(server, fetcher, lie):
    server.faults = [LIES[lie]]
    data, error = _rest(fetcher, 50_000)
    assert data == b""
    assert error is not None
    assert _rest(fetcher, 50_000) == (DATA[50_000:], None)


def test_a_part_that_nobody_asked_for_is_refused(server, fetcher):
    server.faults = [with_headers({"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"})]
    assert _rest(fetcher, 0)[0] == b""


def test_less_than_was_asked_for_is_given_and_said_to_be_less(server, fetcher):
    server.faults = [
        lambda e: e.reply(206, DATA[500:600], {"Content-Range": f"bytes 500-599/{len(DATA)}"})
    ]
    data, error = _rest(fetcher, 500)
    assert data == DATA[500:600]
    assert error.retry_after == 0


def test_a_part_of_a_file_of_unknown_size_is_taken(server, fetcher):
    server.faults = [
        lambda e: e.reply(206, DATA[500:], {"Content-Range": f"bytes 500-{len(DATA) - 1}/*"})
    ]
    assert _rest(fetcher, 500) == (DATA[500:], None)


def test_going_on_sends_the_entity_tag_of_what_came_before(server, fetcher):
    server.faults = [cut_after(10)]
    _rest(fetcher, 0)
    assert _rest(fetcher, 10) == (DATA[10:], None)
    assert server.requests[-1].headers["if-range"] == f'"first-{len(DATA)}"'
    assert server.requests[-1].headers["range"] == "bytes=10-"


def test_without_a_strong_tag_the_date_is_sent_and_without_a_strong_date_nothing(server, fetcher):
    modified = "Tue, 14 Nov 2023 22:13:20 GMT"
    for etag, date in (('W/"weak"', modified), ("", "")):
        server.faults = [with_headers({"ETag": etag, "Last-Modified": date}, code=200)]
        _rest(fetcher, 0)
        server.faults = [ignores_range]
        _rest(fetcher, 10)
        assert server.requests[-1].headers.get("if-range", "") == date


def test_a_date_of_the_second_in_which_the_answer_was_made_is_no_condition(server, fetcher):
    now = "Tue, 14 Nov 2023 22:13:20 GMT"
    server.faults = [with_headers({"ETag": "", "Last-Modified": now, "Date": now}, code=200)]
    server.faults = [
        raw(
            HEAD
            + f"Date: {now}\r\nLast-Modified: {now}\r\n".encode()
            + b"Content-Length: 4\r\n\r\nfour"
        )
    ]
    _rest(fetcher, 0)
    _rest(fetcher, 2)
    assert "if-range" not in server.requests[-1].headers


@pytest.mark.parametrize("answer", ["whole", "part"])
def test_a_file_that_was_replaced_meanwhile_is_not_joined_in_silence(server, fetcher, answer):
    server.faults = [cut_after(10)]
    _rest(fetcher, 0)
    server.edition = "second"
    if answer == "part":  # from a server that does not look at If-Range
        server.faults = [with_headers({"Content-Range": f"bytes 10-{len(DATA) - 1}/{len(DATA)}"})]
    data, error = _rest(fetcher, 10)
    assert data == b""
    assert "was replaced" in error.message
    # Whoever asks again knows that, and checks digests.
    assert _rest(fetcher, 10) == (DATA[10:], None)


def test_another_total_than_before_is_not_joined_in_silence(server, fetcher):
    server.faults = [cut_after(10), with_headers({"Content-Range": "bytes 10-99999/100001"})]
    _rest(fetcher, 0)
    data, error = _rest(fetcher, 10)
    assert data == b""
    assert "was replaced" in error.message


def test_a_416_says_that_everything_is_here(server, fetcher):
    assert _rest(fetcher, len(DATA)) == (b"", None)
    assert len(server.requests) == 1


def test_a_416_that_contradicts_is_refused(server, fetcher):
    server.faults = [status(416, {"Content-Range": "bytes */100000"})]
    data, error = _rest(fetcher, 99_999)
    assert data == b""
    assert "no byte 99,999" in error.message


def test_a_416_that_says_nothing_is_settled_with_the_whole_file(server, fetcher):
    server.faults = [status(416)]
    assert _rest(fetcher, 99_999) == (DATA[99_999:], None)
    assert len(server.requests) == 2
    server.faults = [status(416), status(416)]
    assert _rest(fetcher, 99_999)[1] is not None


@pytest.mark.parametrize("code", [403, 404, 410])
def test_what_is_not_there_is_not_found(server, fetcher, code):
    server.faults = [status(code)]
    with pytest.raises(NotFoundError, match=f"HTTP {code}"):
        list(fetcher.read(PATH, limit=LIMIT))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "9" * 30}, None),
    ],
)
@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_failing_server_says_when_it_is_worth_asking_again(
    server, fetcher, code, headers, seconds
):
    server.faults = [status(code, headers)]
    _, error = _rest(fetcher, 0)
    assert error.retry_after == seconds
    assert f"HTTP {code}" in error.message


def test_a_date_to_come_back_counts_by_the_servers_own_clock(server, fetcher):
    date = b"Date: Thu, 01 Jan 1970 00:01:00 GMT\r\nRetry-After: Thu, 01 Jan 1970 00:01:30 GMT\r\n"
    server.faults = [raw(b"HTTP/1.1 503 Busy\r\n" + date + b"Content-Length: 0\r\n\r\n")]
    assert _rest(fetcher, 0)[1].retry_after == 30.0


@pytest.mark.parametrize("code", [400, 401, 405, 418])
def test_a_refusal_is_not_worth_asking_again(server, fetcher, code):
    server.faults = [status(code)]
    assert _rest(fetcher, 0)[1].retry_after == float("inf")


# -- ends ---------------------------------------------------------------------------------------


DRIPS = {
    "silent": silent,
    "silent in the body": then_endless(HEAD + b"Content-Length: 99\r\n\r\nx", b"", 10),
    "drips status": then_endless(b"HTTP/1.1 ", b"2", 0.01),
    "drips headers": then_endless(HEAD, b"X: y\r\n", 0.05),
    "drips one header": then_endless(HEAD + b"X: ", b"y", 0.01),
    "drips body": then_endless(HEAD + b"Content-Length: 99999\r\n\r\nx", b"x", 0.01),
    "drips chunks": then_endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.01),
    "drips a chunk's size": then_endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0", 0.01),
    "drips trailers": then_endless(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", 0.02
    ),
    "drips an error's body": then_endless(
        b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", b"x", 0.01
    ),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_server_that_drips_is_given_up(server, fetcher, drip):
    server.faults = [DRIPS[drip]]
    begin = time.monotonic()
    _, error = _rest(fetcher, 0)
    assert error is not None
    assert time.monotonic() - begin < 3


ENDLESS = {
    "body": then_endless(HEAD + b"Connection: close\r\n\r\n", b"x" * 4096),
    "body of a huge length": then_endless(
        HEAD + b"Content-Length: 99999999999999\r\n\r\n", b"x" * 4096
    ),
    "chunks": then_endless(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"
    ),
    "one chunk": then_endless(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n", b"x" * 4096
    ),
    "a negative chunk": then_endless(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", b"x" * 4096
    ),
    "interim answers": then_endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "headers": then_endless(HEAD, b"X: y\r\n" * 100),
    "trailers": then_endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000),
}


@pytest.mark.parametrize("start", [0, 50_000])
@pytest.mark.parametrize("item", ENDLESS)
def test_a_server_without_an_end_is_given_up_at_the_limit(server, fetcher, item, start):
    server.faults = [ENDLESS[item]]
    data, error = _rest(fetcher, start)
    assert error is not None
    assert start + len(data) <= LIMIT


def test_a_slow_reader_does_not_accuse_the_server(server):
    patience = Patience(silence_seconds=0.3, window_seconds=0.1, least_rate=1_000_000.0)
    fetcher = HttpFetcher(server.url, patience=patience)
    data = bytearray()
    for piece in fetcher.read(PATH, limit=LIMIT):
        data += piece
        time.sleep(0.15)
    assert data == DATA
    fetcher.close()


def _capped(server, rate):
    fetcher = HttpFetcher(server.url, patience=HURRY, window=window_under(rate))
    return ThrottledFetcher(fetcher, Bandwidth(rate))


def test_a_box_with_a_cap_takes_no_bursts_from_the_line(server):
    server.files[PATH] = data = noise(96 << 10)
    server.send_buffer = 4 << 10
    rate = 32 << 10
    fetcher = open_sources((server.url,), UpdatePolicy(bytes_per_second=rate)).fetchers[0]
    came, ahead, begin = 0, 0, time.monotonic()
    for piece in fetcher.read(PATH, limit=LIMIT):
        came += len(piece)
        ahead = max(ahead, server.sent - came)
        assert came <= rate * (time.monotonic() - begin + 1)
    assert came == len(data)
    assert ahead <= 40 << 10  # 64 KiB without a window


def test_a_cap_below_the_lowest_rate_is_no_reason_to_give_a_server_up(server):
    server.files[PATH] = data = noise(12_000)
    begin = time.monotonic()
    rate = HURRY.least_rate / 2
    assert b"".join(_capped(server, rate).read(PATH, limit=LIMIT)) == data
    assert time.monotonic() - begin >= len(data) / rate - 0.1


def test_a_server_that_is_slower_than_a_cap_is_waited_for(server):
    server.pause = 0.2  # after every 16 KiB: 80 kB a second
    begin = time.monotonic()
    assert b"".join(_capped(server, 150_000).read(PATH, limit=LIMIT)) == DATA
    assert time.monotonic() - begin < 4


def test_a_server_that_drips_is_given_up_under_a_cap_too(server):
    server.faults = [then_endless(HEAD + b"Content-Length: 99999\r\n\r\n", b"x" * 50, 0.05)]
    with pytest.raises(FetchError, match="too slow"):
        list(_capped(server, 50_000).read(PATH, limit=LIMIT))


def test_windows_are_worth_half_a_second_as_far_as_the_system_grants_them():
    assert [window_under(rate) for rate in (1024, 100_000, 400_000)] == [4096, 50_000, 200_000]
    assert window_under(2_500_000) is None


def test_a_meter_counts_only_while_it_waits_and_forgives_the_first_answer():
    meter = Meter("somebody", Patience(window_seconds=10, least_rate=100))
    meter.begin(1 << 20)
    meter.add(1, 19.0)
    for _ in range(20):
        meter.add(101, 1.0)
    for _ in range(9):
        meter.add(99, 1.0)
    with pytest.raises(FetchError, match="too slow: 99 bytes a second"):
        meter.add(99, 1.0)


# -- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_with_the_range(server, fetcher, code):
    server.faults = [redirected("/moved/block", code)]
    assert _rest(fetcher, 5) == (DATA[5:], None)
    assert server.requests[-1].path == "moved/block"
    assert server.requests[-1].headers["range"] == "bytes=5-"


@pytest.mark.incident("redirects in a circle", where="HTTP")
def test_redirects_in_a_circle_end(server, fetcher):
    server.always = redirected(f"/{PATH}")
    _, error = _rest(fetcher, 0)
    assert "redirects more than" in error.message
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "location",
    ["", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http:///x",
     "http://127.0.0.1:99999/", "javascript:x", "http://a b/", "\\\\server\\share"],
)  # fmt: skip
def test_a_redirect_to_nowhere_is_refused(server, fetcher, location):
    server.faults = [redirected(location)]
    data, error = _rest(fetcher, 0)
    assert data == b""
    assert error is not None


@pytest.fixture
def tls(tmp_path):
    return make_certificate(tmp_path)


def test_https_is_never_left_for_http(server, tls):
    bundle, context = tls
    with HttpServer({PATH: DATA}, context) as secure:
        secure.faults = [redirected(f"{server.url}/{PATH}")]
        fetcher = HttpFetcher(secure.url, ca_bundle=bundle, patience=HURRY)
        data, error = _rest(fetcher, 0)
        fetcher.close()
    assert data == b""
    assert "open connection" in error.message
    assert server.requests == []


def test_http_may_redirect_to_https(server, tls):
    bundle, context = tls
    with HttpServer({PATH: DATA}, context) as secure:
        server.faults = [redirected(f"{secure.url}/{PATH}")]
        fetcher = HttpFetcher(server.url, ca_bundle=bundle, patience=HURRY)
        assert _rest(fetcher, 7) == (DATA[7:], None)
        fetcher.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(tls):
    with HttpServer({PATH: DATA}, tls[1]) as secure:
        fetcher = HttpFetcher(secure.url, patience=HURRY)
        data, error = _rest(fetcher, 0)
        fetcher.close()
    assert data == b""
    assert "its certificate is refused" in error.message


def test_a_certificate_of_another_host_is_refused(tls):
    with HttpServer({PATH: DATA}, tls[1]) as secure:
        url = secure.url.replace("127.0.0.1", "localhost")
        fetcher = HttpFetcher(url, ca_bundle=tls[0], patience=HURRY)
        assert "its certificate is refused" in _rest(fetcher, 0)[1].message
        fetcher.close()


def test_old_tls_is_refused(tls):
    bundle, context = tls
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with HttpServer({PATH: DATA}, context) as secure:
        fetcher = HttpFetcher(secure.url, ca_bundle=bundle, patience=HURRY)
        assert "TLS failed" in _rest(fetcher, 0)[1].message
        fetcher.close()


def test_certificates_that_are_none_are_named(tmp_path):
    (tmp_path / "none.pem").write_text("none")
    for name in ("none.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match=name):
            HttpFetcher("https://updates.test", ca_bundle=tmp_path / name)


# -- secrets ------------------------------------------------------------------------------------


def _with_secrets(server):
    return server.url.replace("http://", "http://me:hunter2@") + "/?sig=hunter2"


def test_credentials_are_sent_to_the_server_and_shown_to_nobody(server, caplog):
    caplog.set_level(logging.DEBUG)
    fetcher = HttpFetcher(_with_secrets(server), patience=HURRY)
    assert read_whole(fetcher, PATH, limit=LIMIT) == DATA
    assert server.requests[-1].path == f"{PATH}?sig=hunter2"
    assert server.requests[-1].headers["authorization"] == "Basic bWU6aHVudGVyMg=="
    assert fetcher.label == server.url
    server.always = status(500)
    texts = [repr(fetcher), fetcher.label, repr(vars(fetcher)["_base"])]
    for fault in (status(500), status(404), silent, raw(b"no"), redirected("//"), cut_after(5)):
        server.faults = [fault]
        with pytest.raises((FetchError, NotFoundError)) as caught:
            list(fetcher.read(PATH, limit=LIMIT))
        texts += traceback.format_exception(caught.value)
    fetcher.close()
    url = _with_secrets(server).replace(str(server.server_address[1]), "1")
    with pytest.raises(FetchError) as caught:
        list(HttpFetcher(url).read(PATH, limit=LIMIT))
    texts += traceback.format_exception(caught.value)
    assert "hunter2" not in "".join([*texts, caplog.text])


def test_credentials_do_not_follow_a_redirect_to_another_server(server):
    with HttpServer({PATH: DATA}) as other:
        location = other.url.replace("http://", "http://x:y@")
        server.faults = [redirected(f"{location}/{PATH}")]
        fetcher = HttpFetcher(_with_secrets(server), patience=HURRY)
        assert _rest(fetcher, 0) == (DATA, None)
        fetcher.close()
        assert "authorization" not in other.requests[-1].headers
        assert "sig" not in other.requests[-1].path


@pytest.mark.parametrize(
    "url",
    ["", "updates.test", "ftp://updates.test", "http://", "https://:443", "http://x:99999",
     "http://[::1", "https://updates.test/#part", "file:///repo"],
)  # fmt: skip
def test_what_is_no_url_of_a_repository_is_refused(url):
    with pytest.raises(ConfigurationError, match="must begin with https://"):
        HttpFetcher(url)


def test_a_server_that_is_not_there_is_named():
    for url in ("http://127.0.0.1:1", "http://nowhere.invalid"):
        fetcher = HttpFetcher(url, patience=HURRY)
        _, error = _rest(fetcher, 0)
        assert url in error.message
        assert error.retry_after is None


def test_requests_name_us_ask_for_identity_and_share_a_connection(server, fetcher):
    ports = set()
    server.always = lambda e: (ports.add(e.client_address[1]), e.behave())
    read_whole(fetcher, PATH, limit=LIMIT)
    server.faults = [status(404, body=b"not here")]
    with pytest.raises(NotFoundError):
        read_whole(fetcher, PATH, limit=LIMIT)
    read_whole(fetcher, PATH, limit=LIMIT)
    assert len(ports) == 1
    headers = server.requests[-1].headers
    assert headers["user-agent"].startswith("outpost/")
    assert headers["accept-encoding"] == "identity"
