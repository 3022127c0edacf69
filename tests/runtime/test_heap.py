"""Huge pages: for what is large, full and the process's own."""

import platform
from pathlib import Path

import pytest
from outpost_runtime import heap

_MIB = 1 << 20
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LINUX = tuple(int(part) for part in platform.release().split(".")[:2])


def _mapping(megabytes, resident, access="rw-p", inode=0, start=0x7F0000000000):
    place = f"{start:x}-{start + megabytes * _MIB:x} {access} 00000000 00:00 {inode}"
    return [place, f"Size: {megabytes * 1024} kB", f"Rss: {resident * 1024} kB"]


@pytest.mark.parametrize(
    ("mapping", "chosen"),
    [
        (_mapping(160, 160), True),
        (_mapping(160, 150), True),
        (_mapping(8, 1), False),  # a thread's stack
        (_mapping(4, 4), False),
        (_mapping(160, 160, access="r--p"), False),
        (_mapping(160, 160, access="rw-s"), False),
        (_mapping(160, 160, inode=17), False),  # a file's
    ],
)
def test_only_what_is_large_full_and_our_own_is_joined(mapping, chosen):
    found = list(heap._full_mappings(mapping))
    assert found == ([(0x7F0000000000, 0x7F0000000000 + 160 * _MIB)] if chosen else [])


def test_half_a_huge_page_at_an_end_is_left_alone():
    lines = _mapping(17, 17, start=0x7F0000100000)
    assert list(heap._full_mappings(lines)) == [(0x7F0000200000, 0x7F0000200000 + 16 * _MIB)]


def test_a_large_block_lies_in_huge_pages_afterwards():
    if not _MODE.exists() or "[never]" in _MODE.read_text():
        pytest.skip("this system gives no huge pages to who asks")
    if _LINUX < (6, 1):
        pytest.skip("this Linux joins pages in the background only")
    block = bytearray(b"x") * (32 * _MIB)
    heap.join_pages()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    huge = next(line for line in rollup.splitlines() if line.startswith("AnonHugePages:"))
    assert int(huge.split()[1]) >= 24 * 1024
    assert block == b"x" * len(block)
