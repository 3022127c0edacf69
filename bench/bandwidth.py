"""How fast two threads read memory: the limit of a decoder that reads all weights per token."""

import threading
import time

import numpy as np

from bench.workers import THREADS

_BYTES = 512 << 20
"""More than any cache holds."""

_PASSES = 7


def read_bandwidth() -> float:
    """Return bytes per second: the best of some passes over memory that was written before.

    Each thread takes the maximum of its part as int32, numpy's fastest reading loop,
    which releases the interpreter's lock. The best pass is what the machine can do.
    """
    parts = np.array_split(np.ones(_BYTES // 4, np.int32), THREADS)
    return _BYTES / min(_pass_seconds(parts) for _ in range(_PASSES))


def _pass_seconds(parts: list[np.typing.NDArray[np.int32]]) -> float:
    threads = [threading.Thread(target=part.max) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started
