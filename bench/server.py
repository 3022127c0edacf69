"""A real server in a process of its own, for measurements from outside."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples import bundles

_START_SECONDS = 120
_ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A server that answers."""

    address: str
    metrics: str
    process_id: int

    def resident_megabytes(self) -> float:
        """Return the memory that the process has now."""
        status = Path(f"/proc/{self.process_id}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found.group(1)) / 1024


@contextmanager
def serving(store: Path, *options: str) -> Iterator[Server]:
    """Serve a store on free ports while the context lasts.

    Raises:
        RuntimeError: The server did not start; what it said is in the message.
    """
    command = [bundles.executable("outpost"), "serve", "--store", str(store), *options]
    command += ["--address", _ANY_PORT, "--http-address", _ANY_PORT]
    log = store.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        yield _started(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _started(process: "subprocess.Popen[bytes]", log: Path) -> Server:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        text = log.read_text(encoding="utf-8")
        address = re.search(r"serving .* on (\S+:\d+)\n", text)
        metrics = re.search(r"metrics on (\S+)\n", text)
        if address and metrics:
            return Server(
                address=address.group(1), metrics=metrics.group(1), process_id=process.pid
            )
        time.sleep(0.1)
    raise RuntimeError(f"The server did not start: {log.read_text(encoding='utf-8')}")
