"""The C library's heap: what of it goes back to the system, and when.

Other libraries than glibc have neither function, and then nothing happens here.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_SMALL = 128 << 10
_LARGE = 32 << 20
"""Where glibc's own threshold ends, which rises with every large block that is freed."""


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
    function = getattr(ctypes.CDLL(None), "mallopt", None)
    if function is None:
        yield
        return
    function(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        function(_MMAP_THRESHOLD, _LARGE)
        function(_TRIM_THRESHOLD, 2 * _LARGE)
        trim()
