"""A load generator in a process of its own: callers in a closed loop on one connection.

    python -m bench.load_worker REQUESTS.json

One thread plays all callers: each sends its next request when it has its answer. The file
has lists of encoded requests in base64 by model.
"""

import base64
import itertools
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.http2 import Connection
from bench.workers import answer_tasks

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What one stretch of load showed.

    Attributes:
        waits: Of every call, in seconds, shortest first.
        processor_seconds: What this process took for all of them.
    """

    waits: list[float]
    seconds: float
    processor_seconds: float


def press(address: str, requests: Sequence[bytes], callers: int, seconds: float) -> Load:
    """Let so many callers ask for so long, and wait for the last answers."""
    connection = Connection(address, _METHOD)
    turns = itertools.cycle(requests)
    waits: list[float] = []
    processor, began = _processor_seconds(), time.perf_counter()
    sent = {connection.call(next(turns)): time.perf_counter() for _ in range(callers)}
    while sent:
        ended = connection.ended()
        now = time.perf_counter()
        for stream, _ in ended:
            waits.append(now - sent.pop(stream))
            if now < began + seconds:
                at = time.perf_counter()
                sent[connection.call(next(turns))] = at
    took = time.perf_counter() - began
    connection.close()
    used = _processor_seconds() - processor
    return Load(waits=sorted(waits), seconds=took, processor_seconds=used)


class Generator:
    """What the bench asks for: a stretch of load first, then what it showed.

    Args:
        requests: Encoded requests by model.
    """

    def __init__(self, requests: dict[str, list[bytes]]) -> None:
        self._requests = requests
        self._last = Load(waits=[], seconds=0, processor_seconds=0)

    def press(self, address: str, model: str, callers: int, seconds: float) -> float:
        """Return the requests per second."""
        self._last = press(address, self._requests[model], callers, seconds)
        return len(self._last.waits) / self._last.seconds

    def wait(self, share: float) -> float:
        """Return the seconds within which so large a share of the last calls had their answers."""
        waits = self._last.waits
        return waits[min(int(len(waits) * share), len(waits) - 1)]

    def cost(self) -> float:
        """Return this process's own processor seconds per request of the last load."""
        return self._last.processor_seconds / len(self._last.waits)


def main() -> None:
    """Be a worker."""
    found = json.loads(Path(sys.argv[1]).read_text("ascii"))
    requests = {name: [base64.b64decode(text) for text in texts] for name, texts in found.items()}
    generator = Generator(requests)
    answer_tasks({"press": generator.press, "wait": generator.wait, "cost": generator.cost})


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
