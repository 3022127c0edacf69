"""A mirror fetches once, for all; serves nothing that it should not; and keeps nothing wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.bundle import read_bundle
from outpost_runtime.cli.main import main
from outpost_runtime.errors import FetchError, NotFoundError, StoreError
from outpost_runtime.update.box import Provisioning, provision
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.content_keys import (
    content_key_id,
    encode_wrapped_key,
    group_key_path,
    public_bytes,
    recipient_id,
    wrap_content_key,
    wrap_group_key,
    wrapped_key_path,
)
from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.fetch.meter import Patience
from outpost_runtime.update.fetch.paths import repository_path
from outpost_runtime.update.mirror.cache import MirrorCache
from outpost_runtime.update.mirror.ranges import selected
from outpost_runtime.update.mirror.service import FRESH_SECONDS, MOST_DOWNLOADS
from outpost_runtime.update.release import block_path
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.sync import sync

from tests.support.fixtures import CLASSIFIER
from tests.support.fleet import Fleet
from tests.support.mirrors import running_mirror
from tests.support.publisher import NOW
from tests.support.sealed import KEY
from tests.support.shipments import name_of
from tests.support.small_disk import small_disk
from tests.support.sources import MemoryFetcher, noise

LIMIT = 32 << 20
DATA = noise(200_000)
BLOCK = block_path(name_of(DATA))
TIMESTAMP = "metadata/timestamp.json"


class Upstream(MemoryFetcher):
    """A repository that waits before every piece until it may go on."""

    def __init__(self, files, **options):
        super().__init__(files=files, **options)
        self.gate = threading.Event()
        self.gate.set()

    def read(self, path, *, start=0, limit):
        for piece in super().read(path, start=start, limit=limit):
            yield piece
            assert self.gate.wait(10)


@pytest.fixture
def upstream():
    return Upstream({BLOCK: DATA, TIMESTAMP: b"{}"}, piece=10_000)


def test_a_box_of_a_group_gets_its_keys_through_a_mirror(tmp_path):
    fleet = Fleet()
    box = provision(
        tmp_path / "store",
        fleet.publisher.root_bytes,
        Provisioning(model="press-terminal", sources=("http://mirror",)),
    )
    group = X25519PrivateKey.generate()
    own = box.own.identity("press-terminal")
    for path, wrapped in (
        (group_key_path(own.recipient, 1), wrap_group_key(group, own.encryption_key)),
        (
            wrapped_key_path(content_key_id(KEY), recipient_id(public_bytes(group))),
            wrap_content_key(KEY, public_bytes(group)),
        ),
    ):
        fleet.publisher.files[path] = encode_wrapped_key(wrapped)
    fleet.publish(read_bundle(CLASSIFIER))
    with running_mirror([fleet.publisher.fetcher()], tmp_path / "mirror") as url:
        sources = Sources(fetchers=(HttpFetcher(url),))
        assert sync(box, sources, NOW, Wishes()).staged == ("tiny-classifier",)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def url(upstream, tmp_path, clock):
    with running_mirror([upstream], tmp_path / "mirror", clock=clock) as url:
        yield url


@pytest.fixture
def fetcher(url):
    fetcher = HttpFetcher(url)
    yield fetcher
    fetcher.close()


def _settled(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _file(tmp_path, path=BLOCK):
    return tmp_path / "mirror" / path


def test_a_block_is_fetched_once_and_then_comes_from_the_disk(upstream, fetcher, tmp_path):
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    _settled(lambda: _file(tmp_path).exists())
    for start in (0, 1, 150_000, 200_000):
        assert b"".join(fetcher.read(BLOCK, start=start, limit=LIMIT)) == DATA[start:]
    assert upstream.reads == [(BLOCK, 0)]


def test_what_was_kept_is_served_after_a_restart_without_the_repository(fetcher, tmp_path):
    read_whole(fetcher, BLOCK, limit=LIMIT)
    _settled(lambda: _file(tmp_path).exists())
    nothing = Upstream({})
    with running_mirror([nothing], tmp_path / "mirror") as url:
        again = HttpFetcher(url)
        assert read_whole(again, BLOCK, limit=LIMIT) == DATA
        again.close()
    assert nothing.reads == []


def test_many_who_ask_at_once_share_one_fetch_and_read_along(upstream, url):
    upstream.gate.clear()
    first = [threading.Event() for _ in range(8)]

    def read(number):
        fetcher, came = HttpFetcher(url), b""
        for piece in fetcher.read(BLOCK, limit=LIMIT):
            came += piece
            first[number].set()  # before the repository has given more than one piece
        fetcher.close()
        return came

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(read, number) for number in range(8)]
        assert all(event.wait(10) for event in first)
        assert upstream.given == 10_000
        upstream.gate.set()
        assert all(future.result() == DATA for future in futures)
    assert upstream.reads == [(BLOCK, 0)]


def test_who_goes_on_while_the_file_is_on_its_way_gets_the_rest(upstream, fetcher, url):
    upstream.gate.clear()
    pieces = fetcher.read(BLOCK, limit=LIMIT)
    came = next(pieces)
    second = HttpFetcher(url)
    rest = second.read(BLOCK, start=5, limit=LIMIT)
    assert next(rest) == came[5:]
    upstream.gate.set()
    assert came[5:] + b"".join(rest) == DATA[5:]
    assert came + b"".join(pieces) == DATA
    second.close()


def test_a_client_that_hangs_up_does_not_take_the_file_from_the_others(upstream, url, tmp_path):
    upstream.gate.clear()
    leaving = HttpFetcher(url)
    pieces = leaving.read(BLOCK, limit=LIMIT)
    next(pieces)
    pieces.close()
    leaving.close()
    upstream.gate.set()
    _settled(lambda: _file(tmp_path).exists())
    assert _file(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("sent", [b"garbage\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_is_answered_and_not_logged(url, caplog, sent):
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(sent)
        assert client.recv(100).startswith(b"HTTP/1.")
    assert caplog.records == []


@pytest.mark.parametrize("wrong", [bytes(200_000), DATA[:-1], DATA + b"x", b""], ids=len)
@pytest.mark.incident("a source that lies", where="to a mirror")
def test_wrong_bytes_are_cut_off_and_not_kept_and_right_ones_come_later(
    upstream, fetcher, tmp_path, wrong
):
    upstream.files[BLOCK] = wrong
    with pytest.raises(FetchError):
        read_whole(fetcher, BLOCK, limit=LIMIT)
    assert not _file(tmp_path).exists()
    upstream.files[BLOCK] = DATA
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA


def test_a_repository_that_fails_in_the_middle_cuts_the_answer(upstream, fetcher, tmp_path):
    upstream.cuts = [50_000]
    came = []
    with pytest.raises(FetchError):
        came.extend(fetcher.read(BLOCK, limit=LIMIT))
    assert b"".join(came) == DATA[:50_000]
    assert not _file(tmp_path).exists()
    assert b"".join(fetcher.read(BLOCK, start=50_000, limit=LIMIT)) == DATA[50_000:]


def test_a_repository_that_fails_at_once_is_a_failed_gateway(upstream, fetcher):
    upstream.cuts = [0]
    with pytest.raises(FetchError, match="HTTP 502"):
        read_whole(fetcher, BLOCK, limit=LIMIT)


def test_a_file_that_rotted_is_fetched_again(upstream, fetcher, tmp_path):
    read_whole(fetcher, BLOCK, limit=LIMIT)
    _settled(lambda: _file(tmp_path).exists())
    for damage in (b"rot", DATA[:-1] + b"x"):
        _file(tmp_path).write_bytes(damage)
        assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
        _settled(lambda: _file(tmp_path).exists() and _file(tmp_path).read_bytes() == DATA)
    _file(tmp_path).unlink()
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    assert len(upstream.reads) == 4


def test_metadata_is_kept_for_seconds_and_no_longer(upstream, fetcher, clock):
    def timestamp():
        return read_whole(fetcher, TIMESTAMP, limit=LIMIT)

    assert timestamp() == b"{}"
    upstream.files[TIMESTAMP] = b"newer"
    clock.now += FRESH_SECONDS
    assert timestamp() == b"{}"
    assert len(upstream.reads) == 1
    clock.now += 0.1
    assert timestamp() == b"newer"
    upstream.cuts = [0]
    clock.now += FRESH_SECONDS + 0.1
    with pytest.raises(FetchError):
        timestamp()


def test_a_root_that_is_not_there_yet_is_asked_for_once_in_seconds(upstream, fetcher, clock):
    def root():
        with pytest.raises(NotFoundError):
            read_whole(fetcher, "metadata/2.root.json", limit=LIMIT)

    root()
    root()
    assert len(upstream.reads) == 1
    clock.now += FRESH_SECONDS + 0.1
    root()
    assert len(upstream.reads) == 2
    upstream.files["metadata/2.root.json"] = b"root"
    clock.now += FRESH_SECONDS + 0.1
    assert read_whole(fetcher, "metadata/2.root.json", limit=LIMIT) == b"root"


BAD = [
    "/", "/etc/passwd", "/blocks", "/blocks/", "//" + BLOCK, f"/{BLOCK}/", f"/{BLOCK}?x=1",
    f"/{BLOCK}.part", "/" + BLOCK.upper(), "/" + BLOCK.replace("/", "%2f"), "/./" + BLOCK,
    "/../" + BLOCK, "/blocks/../" + BLOCK, "/blocks/00/" + "ab" * 32, "/metadata/../keys",
    "/metadata/.json",
    "/metadata/a/b.json", "/metadata/x.txt", "/metadata/%00.json", "/targets/x.json",
    "/targets/f/nohash.x.json", "/deltas/" + "g" * 64 + ".json", "/keys/short/x.json",
    "/keys/" + "a" * 64 + "/../x.json", "/metadata/" + "x" * 600 + ".json",
    "http://elsewhere.test/" + BLOCK, "*",
]  # fmt: skip


def _raw(url, head):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(head.encode() + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("target", BAD)
def test_what_no_repository_has_is_not_asked_of_anybody(upstream, url, target):
    assert _raw(url, f"GET {target} HTTP/1.1").split(b" ")[1] in (b"404", b"400")
    assert upstream.reads == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "X"])
def test_nothing_but_get_is_answered(upstream, url, method):
    assert _raw(url, f"{method} /{BLOCK} HTTP/1.1").split(b" ")[1] in (b"405", b"400", b"404")
    assert upstream.reads == []


def test_too_many_files_at_once_are_refused_with_a_time_to_come_back(upstream, url, fetcher):
    upstream.gate.clear()
    names = [block_path(name_of(bytes([i]))) for i in range(MOST_DOWNLOADS)]
    upstream.files |= {name: bytes([i]) for i, name in enumerate(names)}
    with ThreadPoolExecutor(MOST_DOWNLOADS) as pool:
        fetchers = [HttpFetcher(url) for _ in names]
        futures = [
            pool.submit(read_whole, each, name, limit=LIMIT)
            for each, name in zip(fetchers, names, strict=True)
        ]

        def is_refused():
            try:
                read_whole(fetcher, BLOCK, limit=LIMIT)
            except FetchError as error:
                return error.retry_after == 2.0
            return False

        # All but one wait for the only connection to the repository.
        _settled(lambda: len(upstream.reads) == 1)
        time.sleep(0.3)
        assert is_refused()
        upstream.gate.set()
        assert [f.result() for f in futures] == [bytes([i]) for i in range(MOST_DOWNLOADS)]
        for each in fetchers:
            each.close()
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA


def test_a_client_that_does_not_read_is_not_waited_for_by_others(url, fetcher):
    host, port = url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), 5) for _ in range(20)]
    for connection in idle:
        connection.sendall(f"GET /{BLOCK} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    for connection in idle:
        connection.close()


# -- the cache ----------------------------------------------------------------------------------


def _paths(count, size=1000):
    contents = [noise(size, seed=i) for i in range(count)]
    return [(repository_path(block_path(name_of(data))), data) for data in contents]


def test_the_least_recently_used_goes_first(tmp_path):
    cache = MirrorCache(tmp_path, 3000, spare=0)
    files = _paths(4)
    for path, data in files[:3]:
        cache.keep(path, data)
    assert cache.read(files[0][0]) == files[0][1]
    cache.keep(*files[3])
    assert [cache.read(path) is not None for path, _ in files] == [True, False, True, True]
    assert cache.bytes == 3000
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) == 3000


def test_what_was_used_last_is_known_after_a_restart(tmp_path):
    cache = MirrorCache(tmp_path, 3000, spare=0)
    files = _paths(4)
    for path, data in files[:3]:
        cache.keep(path, data)
    for number in (2, 0, 1):
        time.sleep(0.01)
        cache.read(files[number][0])
    again = MirrorCache(tmp_path, 3000, spare=0)
    again.keep(*files[3])
    assert [again.read(path) is not None for path, _ in files] == [True, True, False, True]


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path):
    cache = MirrorCache(tmp_path, 999, spare=0)
    ((path, data),) = _paths(1)
    cache.keep(path, data)
    assert (cache.read(path), cache.bytes) == (None, 0)


def test_a_cache_leaves_the_disk_its_spare_bytes(tmp_path):
    files = _paths(2)
    cache = MirrorCache(tmp_path, 1 << 30, spare=1 << 60)
    for path, data in files:
        cache.keep(path, data)
    assert cache.bytes == 0
    assert list(tmp_path.rglob("*")) == []


def test_what_is_not_ours_is_left_alone_and_unfinished_files_are_swept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".incoming-abc").write_bytes(b"cut off")
    (tmp_path / "blocks" / "ab").mkdir(parents=True)
    (tmp_path / "blocks" / "ab" / f"ab{'0' * 62}").symlink_to(tmp_path / "notes.txt")
    cache = MirrorCache(tmp_path, 10, spare=0)
    assert cache.bytes == 0
    assert not (tmp_path / ".incoming-abc").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_smaller_cache_than_before_makes_room(tmp_path):
    cache = MirrorCache(tmp_path, 1 << 20, spare=0)
    files = _paths(10)
    for path, data in files[:9]:
        cache.keep(path, data)
    smaller = MirrorCache(tmp_path, 2000, spare=0)
    smaller.keep(*files[9])
    assert smaller.bytes <= 2000
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 2


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file cannot be used"):
        MirrorCache(tmp_path / "file", 1)


@pytest.mark.incident("disk full", where="a mirror's cache")
def test_a_full_disk_costs_the_cache_and_not_the_answer(tmp_path):
    files = {block_path(name_of(d)): d for d in (noise(300_000, seed=i) for i in range(8))}
    with small_disk(tmp_path / "mirror"):
        with running_mirror([MemoryFetcher(files=files)], tmp_path / "mirror") as url:
            fetcher = HttpFetcher(url)
            for _ in range(2):
                for path, data in files.items():
                    assert read_whole(fetcher, path, limit=LIMIT) == data
            fetcher.close()
        left = [f for f in (tmp_path / "mirror").rglob("*") if f.is_file()]
        assert 1 <= len(left) <= 3
        for file in left:
            assert name_of(file.read_bytes()) == file.name


# -- ranges -------------------------------------------------------------------------------------


@given(first=st.integers(0, 30), last=st.integers(0, 30), size=st.integers(0, 20))
def test_a_range_selects_what_the_rfc_says(first, last, size):
    data = bytes(range(size))

    def cut(header):
        selection = selected(header, None, etag='"x"', size=size)
        return None if selection is None else data[selection.start : selection.end]

    assert cut(f"bytes={first}-") == data[first:]
    assert cut(f"bytes=-{last}") == (data[-last:] if last else b"")
    expected = data[first : last + 1] if last >= first else None
    assert cut(f"bytes={first}-{last}") == expected


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=1",
     "bytes= 1-2", "bytes=3-2", "bytes=" + "9" * 40 + "-"],
)  # fmt: skip
def test_what_is_no_single_range_is_answered_whole(header):
    assert selected(header, None, etag='"x"', size=10) is None


def test_a_range_under_a_condition_that_does_not_hold_is_answered_whole():
    assert selected("bytes=5-", '"x"', etag='"x"', size=10) is not None
    for condition in ('"y"', 'W/"x"', "Tue, 14 Nov 2023 22:13:20 GMT"):
        assert selected("bytes=5-", condition, etag='"x"', size=10) is None


# -- the command --------------------------------------------------------------------------------


def test_beyond_this_machine_it_listens_only_when_told(tmp_path, capsys):
    arguments = ["mirror", "--repo", str(tmp_path), "--folder", str(tmp_path / "m")]
    assert main([*arguments, "--address", "0.0.0.0:0"]) == 1
    assert "--allow-remote-unauthenticated" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--size", "0"], "at least 1 MiB"),
        (["--repo", "ftp://updates.test"], "must begin with https://"),
        (["--address", "nowhere"], "is not an address"),
        (["--folder", "/proc/nowhere"], "cannot be used"),
    ],
)
def test_a_wrong_option_ends_with_one_message(tmp_path, capsys, changed, said):
    arguments = ["mirror", "--repo", str(tmp_path), "--folder", str(tmp_path / "m")]
    assert main([*arguments, *changed]) == 1
    assert said in capsys.readouterr().err


def test_the_command_mirrors_a_folder_until_it_is_told_to_stop(tmp_path):
    (tmp_path / "repo" / BLOCK).parent.mkdir(parents=True)
    (tmp_path / "repo" / BLOCK).write_bytes(DATA)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "outpost_runtime.cli", "mirror", "--repo"]
    command += [str(tmp_path / "repo"), "--folder", str(tmp_path / "mirror")]
    command += ["--address", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    for line in process.stderr:
        if "mirroring" in line:
            break
    fetcher = HttpFetcher(f"http://127.0.0.1:{port}", patience=Patience(silence_seconds=5))
    assert read_whole(fetcher, BLOCK, limit=LIMIT) == DATA
    fetcher.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stderr.close()
    assert _file(tmp_path).read_bytes() == DATA
