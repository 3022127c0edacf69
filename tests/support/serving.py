"""A real server in a process of its own, with the command that users type."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.store import Store

_ANY_PORT = "127.0.0.1:0"
_START_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A server that answers; ``address`` is gRPC's, ``http`` HTTP's."""

    address: str
    metrics: str
    http: str
    store: Path
    process: subprocess.Popen
    log: Path


@contextmanager
def serving(folder: Path, bundles: Sequence[Path], *options: str) -> Iterator[Running]:
    """Put bundles into a store below ``folder`` and serve it until the context ends."""
    store = folder / "store"
    for bundle in bundles:
        Store(store).add(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    with serving_store(store, folder / "server.log", *options) as running:
        yield running


@contextmanager
def serving_store(store: Path, log: Path, *options: str) -> Iterator[Running]:
    """Serve a store as it is until the context ends."""
    command = [sys.executable, "-m", "outpost_runtime.cli", "serve", "--store", store]
    command += ["--address", _ANY_PORT, "--http-address", _ANY_PORT, *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stderr=output, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
    try:
        address, metrics = _addresses(process, log)
        http = metrics.removeprefix("http://").removesuffix("/metrics")
        yield Running(
            address=address, metrics=metrics, http=http, store=store, process=process, log=log
        )
    finally:
        process.terminate()
        process.wait(20)


def _addresses(process: subprocess.Popen, log: Path) -> tuple[str, str]:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        text = log.read_text()
        found = re.search(r"on (\S+:\d+)\n", text), re.search(r"metrics on (\S+)\n", text)
        if all(found):
            return found[0].group(1), found[1].group(1)
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")
