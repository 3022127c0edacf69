"""Memory: what goes back to the system, and huge pages for what is large, full and our own."""

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime import heap

_MIB, _PAGE = 1 << 20, 2 << 20
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LINUX = tuple(int(part) for part in platform.release().split(".")[:2])
_START = 0x7F0000000000
_BLOCK_OF_A_THREAD = """
import ctypes, threading
from outpost_runtime import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) >> 8  # MiB, of pages of 4 KiB

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
place = []

def take():
    place.append(libc.malloc(24 << 20))
    ctypes.memset(place[0], 1, 24 << 20)

with heap.nothing_kept():
    pass  # from here on, blocks of up to 32 MiB lie in the heap of whoever asks
before = resident()
thread = threading.Thread(target=take)
thread.start()
thread.join()
taken = resident() - before
with heap.nothing_kept():
    libc.free(ctypes.c_void_p(place[0]))
print(taken, resident() - before)
"""


def _mapping(megabytes, resident, access="rw-p", tail="0", start=_START):
    place = f"{start:x}-{start + megabytes * _MIB:x} {access} 00000000 00:00 {tail}"
    lines = [place, f"Size: {megabytes * 1024} kB", f"Rss: {resident * 1024} kB", ""]
    return [line.encode() for line in lines]


@pytest.mark.parametrize(
    ("mapping", "chosen"),
    [
        (_mapping(160, 160), True),
        (_mapping(160, 140), False),
        (_mapping(8, 1), False),  # a thread's stack
        (_mapping(4, 4), False),
        (_mapping(160, 160, access="r--p"), False),
        (_mapping(160, 160, access="rw-s"), False),
        (_mapping(160, 160, tail="17 /models/modèle\x0c weights"), False),
        (_mapping(160, 160, tail="0 [heap]"), False),
    ],
)
def test_only_what_is_large_full_and_our_own_is_joined(mapping, chosen):
    found = list(heap._full_mappings(mapping, _PAGE))
    assert found == ([(_START, _START + 160 * _MIB)] if chosen else [])


def test_half_a_huge_page_at_an_end_is_left_alone():
    lines = _mapping(17, 17, start=0x7F0000100000)
    found = [(0x7F0000200000, 0x7F0000200000 + 16 * _MIB)]
    assert list(heap._full_mappings(lines, _PAGE)) == found


def test_a_large_block_lies_in_huge_pages_afterwards():
    if not _MODE.exists() or "[madvise]" not in _MODE.read_text():
        pytest.skip("this system gives huge pages to everybody, or to nobody")
    if _LINUX < (6, 1):
        pytest.skip("this Linux joins pages in the background only")
    block = mmap.mmap(-1, 32 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * len(block))
    before = _huge_kilobytes()
    heap.join_pages()
    assert _huge_kilobytes() - before >= 24 * 1024
    assert block[:] == b"x" * len(block)
    block.close()


@pytest.mark.parametrize("missing", ["_SYSTEM", "_MAPPINGS"])
def test_a_sandbox_without_these_files_goes_on_with_small_pages(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(heap, missing, tmp_path / "nothing")
    heap.join_pages()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc keeps memory")
def test_what_a_thread_s_heap_had_at_its_end_goes_back_when_it_is_freed():
    command = [sys.executable, "-c", _BLOCK_OF_A_THREAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    taken, left = map(int, done.stdout.split())
    assert taken >= 24
    assert left <= 2


def _huge_kilobytes():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    line = next(line for line in rollup.splitlines() if line.startswith("AnonHugePages:"))
    return int(line.split()[1])
