"""A stick is anybody's, and can be pulled out at any time."""

import errno
import os
import socket
from pathlib import Path

import pytest
from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.folder import FolderFetcher

from tests.support.sources import noise

DATA = noise(1_000_000)
LIMIT = 1 << 20


@pytest.fixture
def stick(tmp_path):
    (tmp_path / "stick" / "blocks").mkdir(parents=True)
    (tmp_path / "stick" / "blocks" / "one").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "stick"


def _fails(stick, path):
    with pytest.raises(FetchError) as caught:
        read_whole(FolderFetcher(stick), path, limit=LIMIT)
    return caught.value.message


def test_links_are_not_followed_wherever_they_lead(stick):
    (stick / "blocks" / "out").symlink_to(stick.parent / "secret")
    (stick / "blocks" / "within").symlink_to(stick / "blocks" / "one")
    (stick / "linked").symlink_to(stick / "blocks")
    (stick / "up").symlink_to("..")
    for path in ("blocks/out", "blocks/within"):
        assert "is no regular file" in _fails(stick, path)
    for path in ("linked/one", "up/secret"):
        assert "a link in the way" in _fails(stick, path)


def test_the_folder_itself_may_be_a_link(stick):
    (stick.parent / "media").symlink_to(stick)
    assert read_whole(FolderFetcher(stick.parent / "media"), "blocks/one", limit=LIMIT) == DATA


def test_nothing_but_regular_files_is_opened(stick):
    os.mkfifo(stick / "pipe")
    (stick / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stick / "socket"))
        for path in ("pipe", "folder", "socket"):
            assert "is no regular file" in _fails(stick, path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_not_opened(stick):
    os.mknod(stick / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    assert "is no regular file" in _fails(stick, "zero")


def test_a_file_in_place_of_a_folder_is_a_fault_of_the_stick(stick):
    assert "a link in the way" in _fails(stick, "blocks/one/more")


def test_a_stick_that_was_never_there_failed_and_does_not_lack_a_file(tmp_path):
    message = _fails(tmp_path / "nowhere", "metadata/timestamp.json")
    assert str(tmp_path / "nowhere") in message


def test_a_stick_pulled_out_between_two_files_failed_and_does_not_lack_a_file(stick):
    fetcher = FolderFetcher(stick)
    read_whole(fetcher, "blocks/one", limit=LIMIT)
    stick.rename(stick.parent / "pulled")
    stick.mkdir()  # where it was mounted
    with pytest.raises(FetchError, match="is not the folder that it was"):
        read_whole(fetcher, "blocks/one", limit=LIMIT)


def test_a_file_cut_while_it_is_read_fails_after_the_bytes_that_were_there(stick):
    pieces = FolderFetcher(stick).read("blocks/one", limit=LIMIT)
    came = next(pieces)
    os.truncate(stick / "blocks" / "one", 300_000)
    with pytest.raises(FetchError, match="ended after 300,000 bytes"):
        came += b"".join(pieces) + next(pieces)
    assert DATA.startswith(came)


def test_a_file_that_grows_while_it_is_read_is_given_as_it_was(stick):
    pieces = FolderFetcher(stick).read("blocks/one", limit=LIMIT)
    came = next(pieces)
    with (stick / "blocks" / "one").open("ab") as file:
        file.write(DATA)
    assert came + b"".join(pieces) == DATA


def test_a_stick_pulled_out_in_the_middle_of_a_file_failed(stick, monkeypatch):
    pieces = FolderFetcher(stick).read("blocks/one", limit=LIMIT)
    came = next(pieces)

    def pulled(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    # No file of this machine fails like a stick that is gone.
    monkeypatch.setattr(os, "pread", pulled)
    with pytest.raises(FetchError, match=r"Input/output error.*still plugged in"):
        next(pieces)
    assert DATA.startswith(came)


def test_no_descriptor_is_left_open(stick):
    fetcher = FolderFetcher(stick)
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_whole(fetcher, "blocks/one", limit=LIMIT)
    pieces = fetcher.read("blocks/one", limit=LIMIT)
    next(pieces)
    pieces.close()
    with pytest.raises(NotFoundError):
        read_whole(fetcher, "blocks/two", limit=LIMIT)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
