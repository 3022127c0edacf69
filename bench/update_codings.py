"""How many bytes an update takes, by who sends it."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from outpost_runtime.bundle import FolderBundle
from outpost_runtime.manifest import MANIFEST_NAME

from bench import peers, update_path
from bench.update_pairs import Pair
from bench.workers import ROOT

LEVEL = 9
_LARGEST_WINDOW = 30
_READ = 1 << 20

FULL, ZSTD, PATCH = "whole", f"zstd -{LEVEL}", "zstd --patch-from"
CHUNKS, XET, OURS = "FastCDC 64 KiB + zstd", "hf-xet", "Outpost"


def measure(pair: Pair) -> dict[str, int]:
    """Return the bytes of an update by coding."""
    found = {FULL: sum(path.stat().st_size for path in files(pair.new))}
    found[ZSTD] = sum(map(_zstd, files(pair.new)))
    found[PATCH] = sum(_patch(path, pair.old) for path in files(pair.new))
    found |= _chunked(pair)
    return found | {OURS: update_path.bytes_of(pair.old, pair.new, pair.base)}


def files(bundle: FolderBundle) -> Iterator[Path]:
    """Yield all files of a bundle."""
    yield from (bundle.path(name) for name in (*bundle.manifest.files, MANIFEST_NAME))


def versions() -> dict[str, str]:
    """Return what the peers are."""
    said = subprocess.run(["zstd", "--version"], check=True, capture_output=True, text=True)  # noqa: S607 - the system's
    return {"zstd": said.stdout.split(" v")[1].split(",")[0]} | _ask("versions")


def _zstd(path: Path) -> int:
    return _output("zstd", "-q", f"-{LEVEL}", "-c", path)


def _patch(path: Path, old: FolderBundle) -> int:
    before = old.path(path.name)
    if not before.is_file():
        return _zstd(path)
    options = ("-q", f"-{LEVEL}", f"--long={_LARGEST_WINDOW}", f"--patch-from={before}", "-c")
    return _output("zstd", *options, path)


def _output(*command: object) -> int:
    """Return how many bytes a command writes."""
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE) as process:
        assert process.stdout
        size = sum(map(len, iter(_reader(process.stdout.read), b"")))
    assert process.returncode == 0, command
    return size


def _reader(read: Callable[[int], bytes]) -> Callable[[], bytes]:
    return lambda: read(_READ)


def _chunked(pair: Pair) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as scratch:
        sides = [[str(path) for path in files(side)] for side in (pair.old, pair.new)]
        found = _ask("measure", *map(json.dumps, sides), scratch)
    return {CHUNKS: int(found["chunks"]), XET: int(found["xet"])}


def _ask(*arguments: str) -> dict[str, str]:
    python = peers.chunkers_python()
    command = [str(python), "-m", "bench.chunk_worker", *arguments]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    answer: dict[str, str] = json.loads(done.stdout)
    return answer
