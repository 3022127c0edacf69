"""Transfers that are cut, lied to, stopped and killed, and what is on the disk afterwards."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from outpost_runtime.errors import FetchError, NotFoundError, StoreError, TrustError
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.delta_index import delta_path, encode_delta_index
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.fetch.folder import FolderFetcher
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.fetch.retry import RetryingFetcher
from outpost_runtime.update.planning import Holdings, plan_update
from outpost_runtime.update.release import DeltaReference, block_path
from outpost_runtime.update.transfer import GROUP, read_delta_index, transfer

from tests.support.http_server import HttpServer, cut_after, ignores_range, status
from tests.support.shipments import make_block, name_of, ship, ship_after, ship_noise
from tests.support.small_disk import PAGE, fill, small_disk
from tests.support.sources import MemoryFetcher

PLENTY = 1 << 40
PIECE = 256 << 10


@pytest.fixture
def store(tmp_path):
    return BlockStore(tmp_path / "blocks")


def _plan(store, shipment, *indexes, keep=()):
    holdings = Holdings(blocks=store.sizes(), partials=store.partials(), free=PLENTY, spare=0)
    return plan_update([shipment.release], indexes, holdings, [s.release for s in keep])


def _transfer(store, shipment, *fetchers, indexes=(), keep=(), **options):
    plan = _plan(store, shipment, *indexes, keep=keep)
    options = {"stop": threading.Event(), "make_block": make_block} | options
    return transfer(plan, store, fetchers, **options)


def _check(store, shipment):
    """Everything is here, right, and nothing else is left."""
    assert {b: store.read(b) for b in store.ids()} == shipment.data
    assert store.partials() == {}


def _put_all(store, shipment):
    for block_id, data in shipment.data.items():
        store.put(block_id, data)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_release_comes_whole(store, workers):
    shipment = ship_noise([10_000, 1, 300_000, *[500] * (GROUP + 3)])
    sources = [MemoryFetcher(files=shipment.files) for _ in range(workers)]
    shown = []
    done = _transfer(store, shipment, *sources, progress=shown.append)
    assert (done.finished, done.blocks, done.useless_deltas) == (True, GROUP + 6, 0)
    assert done.bytes == sum(shown) == sum(map(len, shipment.data.values()))
    assert sum(source.given for source in sources) == done.bytes
    _check(store, shipment)


def test_a_second_transfer_moves_nothing(store):
    shipment = ship_noise([10_000, 20_000])
    _transfer(store, shipment, MemoryFetcher(files=shipment.files))
    source = MemoryFetcher(files={})
    assert _transfer(store, shipment, source).finished
    assert source.reads == []


def test_no_block_is_held_in_memory(store, tmp_path):
    shipment = ship_noise([1 << 20] * 8)
    for path, data in shipment.files.items():
        (tmp_path / "stick" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stick" / path).write_bytes(data)
    sources = [FolderFetcher(tmp_path / "stick") for _ in range(2)]
    tracemalloc.start()
    try:
        _transfer(store, shipment, *sources)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 7 << 18  # pieces of 256 KiB and what goes with them; two blocks are 8 << 18
    _check(store, shipment)


# -- resuming -----------------------------------------------------------------------------------

SMALL = ship_noise([32])
(SMALL_ID,) = SMALL.data
LIES = {block_path(SMALL_ID): bytes(32)}


@pytest.fixture(scope="module")
def small_sources(tmp_path_factory):
    """The small block behind HTTP with and without ranges, in a folder, and in memory."""
    folder = tmp_path_factory.mktemp("stick")
    (folder / "blocks" / SMALL_ID[:2]).mkdir(parents=True)
    (folder / block_path(SMALL_ID)).write_bytes(SMALL.data[SMALL_ID])
    with HttpServer(SMALL.files) as ranged, HttpServer(SMALL.files) as plain:
        plain.always = ignores_range
        web, old = HttpFetcher(ranged.url), HttpFetcher(plain.url)
        yield {
            "http": lambda: web,
            "http without ranges": lambda: old,
            "folder": lambda: FolderFetcher(folder),
            "memory": lambda: MemoryFetcher(files=SMALL.files, piece=7),
        }
        web.close()
        old.close()


@pytest.mark.parametrize("kind", ["http", "http without ranges", "folder", "memory"])
def test_a_transfer_goes_on_at_every_byte_from_every_source(store, small_sources, kind):
    source = small_sources[kind]()
    for cut in range(33):
        first = MemoryFetcher(files=SMALL.files, cuts=[cut], piece=7)
        with pytest.raises(FetchError):
            _transfer(store, SMALL, first)
        assert store.partials() == {SMALL_ID: cut}
        done = _transfer(store, SMALL, source)
        assert done.bytes == 32 - cut  # not one byte twice
        _check(store, SMALL)
        store.remove(SMALL.data)


@pytest.mark.parametrize("kind", ["http", "http without ranges", "folder", "memory"])
def test_another_source_takes_over_at_every_byte_within_one_transfer(store, small_sources, kind):
    for cut in range(33):
        first = MemoryFetcher(files=SMALL.files, cuts=[cut], piece=7)
        fetcher = FailoverFetcher([first, small_sources[kind]()])
        assert _transfer(store, SMALL, fetcher, blame=FailoverFetcher.blame).bytes == 32
        _check(store, SMALL)
        store.remove(SMALL.data)


@pytest.mark.parametrize("kind", ["http", "http without ranges", "folder", "memory"])
def test_the_beginning_of_a_liar_is_thrown_away_at_every_byte(store, small_sources, kind):
    for cut in range(1, 33):
        liar = MemoryFetcher(files=LIES, cuts=[cut], piece=7)
        fetcher = FailoverFetcher([liar, small_sources[kind]()])
        done = _transfer(store, SMALL, fetcher, blame=FailoverFetcher.blame)
        assert done.bytes == 32 + 32  # the mixture, and then the block: nobody is blamed
        assert fetcher.blame() is False
        _check(store, SMALL)
        store.remove(SMALL.data)


@pytest.mark.incident("a link that is cut", where="at 99 % of a block")
def test_restart_from_zero_at_99_percent(store):
    """A cut at 99 % costs the last per cent, not the first 99: over HTTP, again and again."""
    shipment = ship_noise([1 << 20] * 4)
    with HttpServer(shipment.files) as server:
        server.faults = [cut_after((1 << 20) * 99 // 100)]
        fetcher = HttpFetcher(server.url)
        for _ in range(4):
            with pytest.raises(FetchError):
                _transfer(store, shipment, fetcher)
            server.faults = [None, cut_after((1 << 20) * 99 // 100)]
        server.faults = []
        _transfer(store, shipment, fetcher)
        fetcher.close()
    assert server.sent == 4 << 20
    _check(store, shipment)


@pytest.mark.incident("a link that is cut", where="within one transfer")
def test_a_cut_link_is_gone_on_from_within_one_transfer(store):
    shipment = ship_noise([1 << 20] * 2)
    with HttpServer(shipment.files) as server:
        server.faults = [cut_after(400_000), status(503), cut_after(100), cut_after(400_000)]
        http = HttpFetcher(server.url)
        _transfer(store, shipment, RetryingFetcher(http, sleep=lambda _: None))
        http.close()
    assert server.sent == (2 << 20) + len(b"no")
    _check(store, shipment)


# -- lies ---------------------------------------------------------------------------------------


def test_a_part_that_rotted_is_fetched_once_more_before_the_source_is_blamed(store):
    with store.receive(SMALL_ID, 32) as part:
        part.write(b"rotten")
    source, blamed = MemoryFetcher(files=SMALL.files), []
    _transfer(store, SMALL, source, blame=blamed.append)
    assert [start for _, start in source.reads] == [6, 0]
    assert blamed == []
    _check(store, SMALL)


def test_a_whole_part_that_rotted_is_fetched_again_at_once(store):
    with store.receive(SMALL_ID, 32) as part:
        part.write(bytes(32))
    source = MemoryFetcher(files=SMALL.files)
    assert _transfer(store, SMALL, source).bytes == 32
    assert source.reads == [(block_path(SMALL_ID), 0)]
    _check(store, SMALL)


@pytest.mark.parametrize("lie", [bytes(32), bytes(31), b"", bytes(33)], ids=len)
@pytest.mark.incident("a source that lies", where="blocks")
def test_a_source_that_lies_twice_is_left_for_another(store, lie):
    liar = MemoryFetcher(files={block_path(SMALL_ID): lie}, name="liar")
    honest = MemoryFetcher(files=SMALL.files)
    fetcher = FailoverFetcher([liar, honest])
    _transfer(store, SMALL, fetcher, blame=FailoverFetcher.blame)
    assert len(liar.reads) == (1 if len(lie) > 32 else 2)
    assert honest.reads == [(block_path(SMALL_ID), 0)]
    _check(store, SMALL)


@pytest.mark.incident("a source that lies", where="all sources")
def test_where_all_lie_nothing_is_kept_and_the_last_is_named(store):
    liars = [MemoryFetcher(files=LIES, name=name) for name in ("mirror", "repository")]
    with pytest.raises(FetchError, match=f"repository gave wrong bytes.*{SMALL_ID}"):
        _transfer(store, SMALL, FailoverFetcher(liars), blame=FailoverFetcher.blame)
    assert [len(liar.reads) for liar in liars] == [2, 2]
    assert (store.ids(), sum(store.partials().values())) == (set(), 0)


@pytest.mark.parametrize("bit", [0, 100, 255])
@pytest.mark.incident("a flipped bit", where="on the way")
def test_a_bit_flipped_on_the_way_is_repaired_by_asking_once_more(store, bit):
    class Flipping(MemoryFetcher):
        def read(self, path, *, start=0, limit):
            data = bytearray(b"".join(super().read(path, start=start, limit=limit)))
            if len(self.reads) == 1:
                data[bit // 8] ^= 1 << bit % 8
            yield bytes(data)

    _transfer(store, SMALL, Flipping(files=SMALL.files))
    _check(store, SMALL)


def test_a_block_that_nobody_has_ends_the_transfer_and_the_others_stay(store):
    shipment = ship_noise([100, 200, 300])
    first, second, _ = shipment.data
    files = {block_path(first): shipment.data[first]}
    with pytest.raises(NotFoundError, match=second):
        _transfer(store, shipment, MemoryFetcher(files=files))
    assert store.ids() == {first}


# -- deltas -------------------------------------------------------------------------------------


@pytest.fixture
def updated(store):
    """An old release in the store, a new one, its deltas, and a source that has all."""
    old = ship_noise([20_000, 30_000, 40_000])
    _put_all(store, old)
    new, index, deltas = ship_after(old, 600)
    files = {block_path(name): data for name, data in deltas.items()} | new.files
    return old, new, index, MemoryFetcher(files=files)


def _is_here(store, shipment):
    assert {b: store.read(b) for b in shipment.data} == shipment.data
    assert store.partials() == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_deltas_make_the_blocks_and_leave_nothing(store, updated, workers):
    old, new, index, source = updated
    done = _transfer(store, new, *[source] * workers, indexes=[index], keep=[old])
    assert (done.finished, done.bytes, done.blocks) == (True, 1800, 3)
    _is_here(store, new)
    assert store.ids() == {*old.data, *new.data}


def test_sources_that_nobody_needs_any_more_go_last(store, updated):
    _, new, index, source = updated
    assert _transfer(store, new, source, indexes=[index]).bytes == 1800
    _check(store, new)


def test_a_delta_that_was_cut_is_gone_on_from(store, updated):
    old, new, index, source = updated
    source.cuts, source.piece = [250], 50
    with pytest.raises(FetchError):
        _transfer(store, new, source, indexes=[index], keep=[old])
    assert list(store.partials().values()) == [250]
    assert _transfer(store, new, source, indexes=[index], keep=[old]).bytes == 1550
    _is_here(store, new)


def _refuses(*_):
    raise TrustError("not decodable")


@pytest.mark.parametrize(
    "broken", [_refuses, lambda *_: b"", lambda *_: bytes(20_000), lambda *_: bytes(2_000_000)]
)
def test_a_delta_that_leads_nowhere_is_replaced_by_the_whole_block(store, updated, broken):
    old, new, index, source = updated
    done = _transfer(store, new, source, indexes=[index], keep=[old], make_block=broken)
    assert (done.finished, done.useless_deltas, done.bytes) == (True, 3, 1800 + 90_000)
    _is_here(store, new)


@pytest.mark.incident("a damaged block", where="on the box, where a delta starts")
def test_a_damaged_source_block_costs_no_delta_and_is_reported(store, updated):
    old, new, index, source = updated
    damaged = next(iter(old.data))
    (store.folder / damaged[:2] / damaged).write_bytes(bytes(20_000))
    with store.receive(index.deltas[0].id, 600) as part:
        part.write(b"begun")
    done = _transfer(store, new, source, indexes=[index], keep=[old])
    assert (done.finished, done.bytes) == (True, 1200 + 20_000)
    assert done.damaged == {damaged}
    _is_here(store, new)


def test_a_delta_index_is_checked_by_its_digest(updated):
    _, _, index, _ = updated
    data = encode_delta_index(index)
    name = name_of(data)
    reference = DeltaReference(bundle="0" * 64, index=name, index_bytes=len(data), stored=1)
    right = MemoryFetcher(files={delta_path(name): data})
    assert read_delta_index(right, reference) == index
    for other in (data[:-1], data.replace(b" 600", b" 601"), b""):
        with pytest.raises(TrustError, match="another delta index"):
            read_delta_index(MemoryFetcher(files={delta_path(name): other}), reference)
    with pytest.raises(FetchError):
        read_delta_index(MemoryFetcher(files={delta_path(name): data + b" "}), reference)


# -- stopping, failing, being killed ------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pieces", [0, 1, 5, 25])
def test_a_stopped_transfer_says_so_and_is_gone_on_from(store, workers, pieces):
    shipment = ship_noise([5000] * 10)
    sources = [MemoryFetcher(files=shipment.files) for _ in range(workers)]
    stop, seen = threading.Event(), []

    def progress(count):
        seen.append(count)
        if len(seen) >= pieces:
            stop.set()

    if not pieces:
        stop.set()
    done = _transfer(store, shipment, *sources, stop=stop, progress=progress)
    assert not done.finished
    assert len(seen) <= pieces + workers - 1
    here = sum(store.sizes().values()) + sum(store.partials().values())
    assert here == done.bytes == sum(seen)
    assert _transfer(store, shipment, *sources).bytes == 50_000 - here
    _check(store, shipment)


@pytest.mark.parametrize("failing_first", [True, False])
def test_when_one_worker_fails_the_other_stops_too(store, failing_first):
    shipment = ship_noise([5000] * 50)
    failing = MemoryFetcher(files=shipment.files, cuts=[100])

    class Slow(MemoryFetcher):
        def read(self, path, *, start=0, limit):
            for piece in super().read(path, start=start, limit=limit):
                time.sleep(0.005)
                yield piece

    slow = Slow(files=shipment.files)
    with pytest.raises(FetchError):
        _transfer(store, shipment, *([failing, slow] if failing_first else [slow, failing]))
    assert len(slow.reads) < 10


def test_two_workers_never_do_the_same_block(store):
    shipment = ship_noise([3000] * 100)
    sources = [MemoryFetcher(files=shipment.files) for _ in range(2)]
    _transfer(store, shipment, *sources)
    asked = [path for source in sources for path, _ in source.reads]
    assert sorted(asked) == sorted(shipment.files)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.incident("kill -9", where="while blocks come")
def test_a_killed_transfer_is_gone_on_from_and_moves_no_more_than_a_piece_twice(tmp_path, workers):
    sizes = [700_000, 1 << 20, 5000, 900_000]
    shipment = ship_noise(sizes)
    store, kills = BlockStore(tmp_path / "blocks"), 0
    with HttpServer(shipment.files) as server:
        server.pause = 0.002
        command = [sys.executable, "-m", "tests.support.fetching_child", server.url]
        command += [str(store.folder), str(workers), *map(str, sizes)]
        for threshold in (200_000, 1_100_000, 2_200_000, PLENTY):
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while child.poll() is None:
                if server.sent >= threshold:
                    child.kill()
                    kills += 1
                    break
                time.sleep(0.001)
            child.wait()
        assert child.returncode == 0
    assert kills == 3
    assert sum(sizes) <= server.sent <= sum(sizes) + kills * workers * PIECE
    _check(store, shipment)


@pytest.mark.incident("disk full", where="any page, while blocks come")
def test_a_full_disk_at_every_page_leaves_nothing_half_visible_and_is_gone_on_from(tmp_path):
    shipment = ship_noise([10_000, 12_000, 5000])
    with small_disk(tmp_path / "disk") as disk:
        for pages in range(8):
            store = BlockStore(disk / "blocks")
            ballast = fill(disk, pages * PAGE)
            source = MemoryFetcher(files=shipment.files)
            with pytest.raises(StoreError, match=r"is full: [0-9,]+ bytes are free"):
                _transfer(store, shipment, source)
            assert store.damaged(store.ids()) == set()
            ballast.unlink()
            _transfer(store, shipment, source)
            _check(store, shipment)
            store.remove(shipment.data)


@pytest.mark.incident("disk full", where="any page, while a delta is decoded")
def test_a_disk_that_fills_up_while_a_delta_is_decoded_loses_no_delta(tmp_path):
    old = ship_noise([20_000])
    new, index, deltas = ship_after(old, 600)
    files = {block_path(name): data for name, data in deltas.items()} | new.files
    failed = 0
    with small_disk(tmp_path / "disk") as disk:
        store = BlockStore(disk / "blocks")
        _put_all(store, old)
        for pages in range(20):
            ballast = fill(disk, pages * PAGE)
            source = MemoryFetcher(files=files)
            with contextlib.suppress(StoreError):
                _transfer(store, new, source, indexes=[index], keep=[old])
            ballast.unlink()
            assert store.damaged(store.ids()) == set()
            decoding = store.ids() == set(old.data) and sum(store.partials().values()) == 600
            failed += decoding
            _transfer(store, new, source, indexes=[index], keep=[old])
            if decoding:
                assert source.given == 600
            _is_here(store, new)
            store.remove(new.data)
    assert failed > 2  # the delta had come, and what it makes did not fit


@pytest.mark.parametrize("name", ["write", "fsync", "open", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.incident("a disk that fails", where="any call, while blocks come")
def test_a_disk_that_fails_at_any_call_leaves_nothing_half_visible(
    store, updated, monkeypatch, name, code
):
    old, new, index, source = updated
    real = getattr(os, name)
    for number in range(1, 60):
        calls = 0

        def call(*arguments, number=number, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            try:
                _transfer(store, new, source, indexes=[index], keep=[old])
            except StoreError:
                pass
            else:
                if calls < number:
                    return
        assert store.damaged(store.ids()) == set()
        _transfer(store, new, source, indexes=[index], keep=[old])
        _is_here(store, new)
        store.remove(new.data)
    pytest.fail("there is no end to the calls")


def test_every_block_is_durable_before_the_transfer_says_that_it_has_finished(store, monkeypatch):
    shipment = ship_noise([100] * (GROUP + 5))
    flushed, real = set(), os.fsync

    def fsync(descriptor):
        flushed.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert _transfer(store, shipment, MemoryFetcher(files=shipment.files)).finished
    for block_id in shipment.data:
        folder = store.folder / block_id[:2]
        assert {f"{folder / block_id}.part", str(folder), str(store.folder)} <= flushed


def test_a_transfer_of_nothing_is_finished(store):
    assert _transfer(store, ship([]), MemoryFetcher(files={})).finished
