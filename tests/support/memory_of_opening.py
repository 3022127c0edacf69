"""What opening a model takes, in a process of its own: ``python -m tests.support.memory_of_opening``.

Prints JSON: bytes above those of the process before, at the peak and afterwards, and seconds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - as all of these: in memory before anything is measured
import numpy as np  # noqa: F401
import onnxruntime  # noqa: F401
from outpost_runtime.bundle import Bundle, read_bundle
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.opening import open_model
from outpost_runtime.sessions.graph import graph_of
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.update.release import parse_release
from outpost_runtime.update.sealed import open_sealed

from tests.support.sealed import KEY, FolderBlocks

RELEASE, BLOCKS = "release.json", "blocks"


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
    figures = {"peak": _resident("VmHWM") + outside, "after": _resident("VmRSS") + outside}
    opened.close()
    print(
        json.dumps({name: value - before for name, value in figures.items()} | {"seconds": seconds})
    )  # noqa: T201, E501


def _opened(parsed: argparse.Namespace) -> object:
    if parsed.folder is not None:
        bundle: Bundle = read_bundle(parsed.folder)
    else:
        release = parse_release((parsed.sealed / RELEASE).read_bytes())
        bundle = open_sealed(release, FolderBlocks(parsed.sealed / BLOCKS).read, KEY)
    interface = bundle.manifest.interface
    assert not isinstance(interface, AdapterInterface)
    if parsed.what == "model":
        return open_model(bundle)
    return OrtSession(graph_of(bundle, interface.model))


def _resident(field: str) -> int:
    return _sum(Path("/proc/self/status"), lambda line: line.startswith(f"{field}:"))


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


def _sum(file: Path, wanted: Callable[[str], bool]) -> int:
    return sum(int(line.split()[1]) << 10 for line in file.read_text().splitlines() if wanted(line))


if __name__ == "__main__":
    main()
