"""The process's memory: what of it goes back to the system, and what lies in huge pages.

Where the C library or the system lacks a function, nothing happens here.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_SMALL = 128 << 10
_LARGE = 32 << 20
"""Where glibc's own threshold ends, which rises with every large block that is freed."""

_PAGES_WANTED = 4
_WILL_BE_HUGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE and, since Linux 6.1, MADV_COLLAPSE
_FULL = 0.98
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_MAPPINGS = Path("/proc/self/smaps")


def trim() -> None:
    """Return what nobody uses to the system."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if function is not None:
        function(0)


@contextmanager
def pages_of_their_own() -> Iterator[None]:
    """Meanwhile, every large block that is freed goes back to the system at once.

    A streamed graph's weights are freed one by one while packed ones are made. For Gemma 3 270M in
    8 bits the peak is 607 MiB with this, and 690 without: the rest lay free between such blocks.
    """
    with _small(_MMAP_THRESHOLD):
        yield


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Meanwhile, no thread's heap keeps what is freed at its end, where :func:`trim` does not go.

    Without this, 6 to 35 MB of a closed model's 145 stayed, by which thread had opened it.
    """
    with _small(_TRIM_THRESHOLD):
        yield


@contextmanager
def _small(threshold: int) -> Iterator[None]:
    """Meanwhile, one of mallopt(3)'s thresholds is small; then both are as large as they grow."""
    function = getattr(ctypes.CDLL(None), "mallopt", None)
    if function is None:
        yield
        return
    function(threshold, _SMALL)
    try:
        yield
    finally:
        function(_MMAP_THRESHOLD, _LARGE)
        function(_TRIM_THRESHOLD, 2 * _LARGE)
        trim()


def join_pages() -> None:
    """Let what is large and full in this process lie in huge pages, if the system lets who asks.

    An opened model's weights are read for every token: with one stream, 268 MB in 65 thousand
    small pages, of which a processor knows the places of two thousand at a time.
    """
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is None:
        return
    with suppress(OSError):  # a sandbox without /proc or /sys
        if b"[never]" in (_SYSTEM / "enabled").read_bytes():
            return
        page = int((_SYSTEM / "hpage_pmd_size").read_bytes())
        for start, end in list(_full_mappings(_MAPPINGS.read_bytes().split(b"\n"), page)):
            place = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
            if function(*place, _COLLAPSE):  # too old for it, or out of memory: in the background
                function(*place, _WILL_BE_HUGE)


def _full_mappings(lines: Iterable[bytes], page: int) -> Iterator[tuple[int, int]]:
    """Yield where the huge pages are of a process's own mappings that are resident.

    A stack, a heap or what is kept for later would take memory that it does not have now.

    Args:
        lines: Of ``/proc/PID/smaps``.
        page: Bytes of a huge page.
    """
    place = None
    for line in lines:
        words = line.split()
        if words and not words[0].endswith(b":"):
            place = _place(words)
        elif words and words[0] == b"Rss:" and place is not None:
            start, end = place
            begin, stop = -(-start // page) * page, end // page * page
            full = int(words[1]) << 10 >= _FULL * (end - start)
            if full and stop - begin >= _PAGES_WANTED * page:
                yield begin, stop


def _place(words: list[bytes]) -> tuple[int, int] | None:
    """Return a mapping's begin and end, if it is the process's own memory and has no name."""
    if words[1] != b"rw-p" or words[4:] != [b"0"]:
        return None
    start, end = (int(word, 16) for word in words[0].split(b"-"))
    return start, end
