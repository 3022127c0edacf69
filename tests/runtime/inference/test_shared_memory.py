import os
import secrets
from pathlib import Path

import pytest
from outpost_runtime.errors import InvalidInputError, NotFoundError
from outpost_runtime.server.inference.message import Placement
from outpost_runtime.server.inference.shared_memory import Regions

_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies


@pytest.fixture
def key():
    key = f"outpost-test-{secrets.token_hex(4)}"
    (_FOLDER / key).write_bytes(bytes(range(64)))
    yield key
    (_FOLDER / key).unlink()


@pytest.fixture
def regions():
    regions = Regions()
    yield regions
    regions.close()


def _place(offset, size, region="r"):
    return Placement(region=region, offset=offset, byte_size=size)


def test_what_a_client_wrote_is_read_and_what_is_written_the_client_reads(regions, key):
    regions.register("r", f"/{key}", 16, 32)
    assert regions.read(_place(2, 3)) == bytes([18, 19, 20])
    regions.write(_place(0, 8), b"abc")
    assert (_FOLDER / key).read_bytes()[16:20] == b"abc\x13"


def test_regions_are_listed_and_forgotten(regions, key):
    regions.register("r", key, 0, 64)
    regions.register("s", key, 0, 8)
    assert [region.name for region in regions.status("")] == ["r", "s"]
    regions.unregister("r")
    regions.unregister("nobody")
    with pytest.raises(NotFoundError):
        regions.read(_place(0, 1))
    regions.unregister("")
    assert regions.status("") == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"key": "nothing-here"}, NotFoundError),
        ({"key": "../etc/passwd"}, InvalidInputError),
        ({"key": ".."}, InvalidInputError),
        ({"key": ""}, InvalidInputError),
        ({"byte_size": 65}, InvalidInputError),
        ({"offset": 60, "byte_size": 5}, InvalidInputError),
        ({"byte_size": 0}, InvalidInputError),
        ({"name": ""}, InvalidInputError),
        ({"name": "r" * 257}, InvalidInputError),
        ({"offset": -5}, InvalidInputError),
        ({"byte_size": -5}, InvalidInputError),
    ],
)
def test_what_is_no_region_is_refused(regions, key, change, error):
    with pytest.raises(error):
        regions.register(**({"name": "r", "key": key, "offset": 0, "byte_size": 8} | change))
    assert regions.status("") == []


def test_a_link_out_of_shared_memory_is_not_followed(regions, key):
    link = _FOLDER / f"{key}-link"
    link.symlink_to("/etc/hostname")
    try:
        with pytest.raises(NotFoundError):
            regions.register("r", link.name, 0, 1)
    finally:
        link.unlink()


def test_a_name_can_be_taken_once(regions, key):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError, match="already"):
        regions.register("r", key, 0, 64)


@pytest.mark.parametrize(("offset", "size"), [(60, 5), (64, 1), (0, 65), (0, 1 << 40)])
def test_nothing_is_read_or_written_outside_of_a_region(regions, key, offset, size):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError):
        regions.read(_place(offset, size))
    with pytest.raises(InvalidInputError):
        regions.write(_place(offset, size), b"x")


def test_more_than_the_place_holds_is_not_written(regions, key):
    regions.register("r", key, 0, 64)
    with pytest.raises(InvalidInputError, match="has 2"):
        regions.write(_place(0, 2), b"abc")


def test_a_client_that_shrinks_its_memory_does_not_end_the_server(regions, key):
    regions.register("r", key, 0, 64)
    os.truncate(_FOLDER / key, 4)
    with pytest.raises(InvalidInputError, match="become smaller"):
        regions.read(_place(0, 8))


def test_no_descriptor_is_left_behind(regions, key):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        regions.register("r", key, 0, 64)
        regions.unregister("r")
        with pytest.raises(InvalidInputError):
            regions.register("r", key, 0, 99)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
