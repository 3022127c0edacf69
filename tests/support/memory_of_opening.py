"""What opening a model takes, in a process of its own.

Prints JSON: bytes above those of the process before, at the peak and afterwards, and seconds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import ml_dtypes  # noqa: F401 - as all of these: in memory before anything is measured
import numpy as np  # noqa: F401
import onnxruntime  # noqa: F401
from outpost_runtime.bundle import Bundle, read_bundle
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.opening import Model, open_model
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession

from tests.support.sealed_run import shipped


def main() -> None:
    """Open what the arguments name, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["session", "model"])
    parser.add_argument("--folder", type=Path, help="a plain bundle")
    parser.add_argument("--sealed", type=Path, help="a folder with a release and its blocks")
    parsed = parser.parse_args()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.perf_counter()
    opened = _opened(parsed)
    seconds = time.perf_counter() - began
    outside = _memory_files()
    figures = {
        "peak": _resident("VmHWM") + outside - before,
        "after": _resident("VmRSS") + outside - before,
        "seconds": seconds,
    }
    opened.close()
    sys.stdout.write(json.dumps(figures))


def _opened(parsed: argparse.Namespace) -> OrtSession | Model:
    bundle: Bundle = shipped(parsed.sealed) if parsed.sealed else read_bundle(parsed.folder)
    interface = bundle.manifest.interface
    assert not isinstance(interface, AdapterInterface)
    if parsed.what == "model":
        return open_model(bundle)
    return OrtSession(graph_of(bundle, interface.model))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def _memory_files() -> int:
    """Bytes of mapped memory files that no page table has yet: they take memory all the same."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = "/memfd:weights" in line
        elif inside and line.startswith(("Size:", "Rss:")):
            size = int(line.split()[1]) << 10
            total += size if line.startswith("Size:") else -size
    return total


if __name__ == "__main__":
    main()
