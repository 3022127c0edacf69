"""The block store: what is visible is right, whatever happened in between."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outpost_runtime.errors import FetchError, StoreError
from outpost_runtime.update.blocks import BlockStore

from tests.support.shipments import name_of
from tests.support.small_disk import PAGE, fill, small_disk
from tests.support.sources import noise

DATA = noise(30_000)
ID = name_of(DATA)


@pytest.fixture
def store(tmp_path):
    return BlockStore(tmp_path / "blocks")


def _file(store, block_id=ID):
    return store.folder / block_id[:2] / block_id


def test_a_block_is_kept_under_its_digest(store):
    assert (store.has(ID), store.ids(), store.partials()) == (False, set(), {})
    store.put(ID, DATA)
    assert store.has(ID)
    assert store.read(ID) == DATA == _file(store).read_bytes()
    assert store.sizes() == {ID: len(DATA)}
    assert store.partials() == {}
    assert BlockStore(store.folder).read(ID) == DATA


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_can_be_put(store, kind):
    store.put(ID, kind(DATA))
    assert store.read(ID) == DATA


def test_bytes_of_another_digest_are_refused_and_nothing_is_left(store):
    with pytest.raises(StoreError, match=ID):
        store.put(ID, DATA[:-1])
    assert (store.has(ID), store.ids(), store.partials()) == (False, set(), {})


def test_a_block_that_is_not_here_is_named(store):
    with pytest.raises(StoreError, match=f"{ID}.*No such file"):
        store.read(ID)


@pytest.mark.parametrize("bit", [0, 7, 12_345 * 8 + 3, len(DATA) * 8 - 1])
@pytest.mark.incident("a flipped bit", where="in a stored block")
def test_a_flipped_bit_is_found_and_the_block_can_be_fetched_again(store, bit):
    store.put(ID, DATA)
    rotten = bytearray(DATA)
    rotten[bit // 8] ^= 1 << bit % 8
    _file(store).write_bytes(rotten)
    with pytest.raises(StoreError, match=f"{ID}.*is damaged"):
        store.read(ID)
    assert store.damaged([ID]) == {ID}
    store.put(ID, DATA)
    assert store.read(ID) == DATA
    assert store.damaged([ID]) == set()


@pytest.mark.parametrize("size", [0, 1, 29_999, 30_001, 5_000_000])
def test_a_block_of_another_length_is_damaged(store, size):
    store.put(ID, DATA)
    os.truncate(_file(store), size)
    with pytest.raises(StoreError, match="is damaged"):
        store.read(ID)


def test_what_is_no_block_is_not_listed_and_not_read(store):
    store.put(ID, DATA)
    folder = _file(store).parent
    (folder / "README").write_text("hello")
    (folder / f"{ID[:2]}{'0' * 61}").write_text("a digit short")
    (folder / f"{ID[:2]}{'0' * 62}").mkdir()
    (folder / f"{ID[:2]}{'1' * 62}").symlink_to(_file(store))
    (store.folder / "xx").mkdir()
    other = "00" if ID[:2] != "00" else "11"
    (store.folder / other).mkdir()
    (store.folder / other / ID).write_bytes(DATA)  # in the wrong folder
    assert store.ids() == {ID}
    assert store.partials() == {}
    link = f"{ID[:2]}{'1' * 62}"
    assert not store.has(link)
    with pytest.raises(StoreError):
        store.read(link)


def test_removing_takes_what_is_named_and_nothing_else(store):
    second = noise(100, seed=1)
    store.put(ID, DATA)
    store.put(name_of(second), second)
    store.remove([ID, "0" * 64])
    assert store.ids() == {name_of(second)}


# -- receiving ----------------------------------------------------------------------------------


def test_a_block_appears_only_with_the_commit(store):
    with store.receive(ID, len(DATA)) as part:
        part.write(DATA)
        assert part.is_right()
        assert part.content() == DATA
        store.keep(part)
    assert not store.has(ID)
    assert store.waiting == 1
    store.commit()
    assert store.read(ID) == DATA
    assert (store.waiting, store.partials()) == (0, {})


@pytest.mark.parametrize("cut", [0, 1, 4096, 29_999, 30_000])
def test_what_came_before_a_cut_is_gone_on_from(store, cut):
    with store.receive(ID, len(DATA)) as part:
        part.write(DATA[:cut])
    assert store.partials() == {ID: cut}
    with BlockStore(store.folder).receive(ID, len(DATA)) as part:
        assert part.size == cut
        assert part.is_right() == (cut == len(DATA))
        part.write(DATA[cut:])
        assert part.is_right()


def test_a_part_that_is_too_long_is_thrown_away(store):
    with store.receive(ID, 40_000) as part:
        part.write(noise(40_000, seed=5))
    with store.receive(ID, len(DATA)) as part:
        assert part.size == 0
        part.write(DATA)
        assert part.is_right()


def test_more_than_the_block_has_is_refused_before_it_is_written(store):
    with store.receive(ID, len(DATA)) as part:
        part.write(DATA)
        with pytest.raises(FetchError, match="longer than 30,000"):
            part.write(b"x")
        assert part.is_right()


def test_wrong_bytes_are_never_right_and_can_be_restarted(store):
    with store.receive(ID, len(DATA)) as part:
        part.write(noise(len(DATA), seed=7))
        assert part.is_full()
        assert not part.is_right()
        with pytest.raises(AssertionError):
            store.keep(part)
        part.restart()
        part.write(DATA)
        store.keep(part)
    store.commit()
    assert store.read(ID) == DATA


def test_two_processes_do_not_receive_the_same_block_at_once(store):
    with store.receive(ID, len(DATA)), pytest.raises(StoreError, match="another process"):
        BlockStore(store.folder).receive(ID, len(DATA))


def test_parts_can_be_discarded(store):
    with store.receive(ID, len(DATA)) as part:
        part.write(DATA[:10])
    store.discard([ID, "0" * 64])
    assert store.partials() == {}


# -- full and failing disks ---------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.incident("disk full", where="any page of a block")
def test_a_full_disk_at_every_page_leaves_nothing_half_visible_and_says_how_full_it_is(disk):
    for pages in range(12):
        store = BlockStore(disk / "blocks")
        ballast = fill(disk, pages * PAGE)
        if pages < 8:
            with pytest.raises(StoreError, match=r"[0-9,]+ bytes are free, [0-9,]+ more"):
                store.put(ID, DATA)
            assert (store.has(ID), store.partials()) == (False, {})
        else:
            store.put(ID, DATA)
        ballast.unlink()
        store.put(ID, DATA)
        assert store.read(ID) == DATA
        store.remove([ID])


def _failing(monkeypatch, name, number):
    real, calls = getattr(os, name), [0]

    def call(*arguments, **options):
        calls[0] += 1
        if calls[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("name", ["open", "write", "fsync", "ftruncate", "replace", "mkdir"])
def test_a_disk_that_fills_up_at_any_call_leaves_nothing_half_visible(store, monkeypatch, name):
    contents = [noise(5000, seed=i) for i in range(3)]
    for number in range(1, 20):
        with monkeypatch.context() as patch:
            calls = _failing(patch, name, number)
            try:
                for data in contents:
                    store.stage(name_of(data), data)
                store.commit()
            except StoreError as error:
                assert "is full" in error.message  # noqa: PT017 - most calls succeed
        for block_id in store.ids():
            store.read(block_id)
        again = BlockStore(store.folder)
        for data in contents:
            again.put(name_of(data), data)
            assert again.read(name_of(data)) == data
        again.remove(store.ids())
        if calls[0] < number:
            return
    pytest.fail("there is no end to the calls")


@pytest.mark.incident("a flush that fails", where="blocks that become durable together")
def test_a_failed_flush_throws_the_group_away_because_the_system_lies_about_it_afterwards(
    store, monkeypatch
):
    store.put(ID, DATA)
    store.remove([ID])
    with monkeypatch.context() as patch:
        calls = _failing(patch, "fsync", 1)
        with pytest.raises(StoreError):
            store.put(ID, DATA)
    assert calls == [1]
    assert (store.ids(), store.partials(), store.waiting) == (set(), {}, 0)


def test_a_store_that_may_not_be_written_says_so(tmp_path):
    (tmp_path / "blocks").write_text("a file")
    with pytest.raises(StoreError, match="cannot be used"):
        BlockStore(tmp_path / "blocks").put(ID, DATA)


def test_names_that_a_killed_process_did_not_flush_are_flushed_by_the_next_commit(
    store, monkeypatch
):
    store.put(ID, DATA)
    with monkeypatch.context() as patch:
        _failing(patch, "fsync", 2)  # the folder's
        second = noise(100, seed=1)
        with pytest.raises(StoreError):
            store.put(name_of(second), second)
    assert store.has(name_of(second))  # visible, and perhaps gone after a power cut
    flushed, real = [], os.fsync

    def fsync(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    again = BlockStore(store.folder)
    again.commit()
    assert {str(_file(store).parent), str(_file(store, name_of(second)).parent)} < set(flushed)
    flushed.clear()
    again.commit()
    assert flushed == []


CHILD = """
import sys
from outpost_runtime.update.blocks import BlockStore
from pathlib import Path
from tests.support.shipments import name_of
from tests.support.sources import noise
store = BlockStore(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10_000):
    data = noise(20_000, seed=number)
    store.put(name_of(data), data)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.05])
@pytest.mark.incident("kill -9", where="while blocks are written")
def test_whatever_is_visible_after_a_kill_is_right(tmp_path, delay):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "blocks")], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    time.sleep(delay)
    child.kill()
    child.wait()
    child.stdout.close()
    store = BlockStore(tmp_path / "blocks")
    assert store.damaged(store.ids()) == set()
    assert len(store.partials()) <= 1
    data = noise(20_000, seed=0)
    store.put(name_of(data), data)
