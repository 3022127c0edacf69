"""How fast blocks come over HTTP, and what durability and latency cost.

    python -m bench.transfer [FOLDER]

300 blocks of 1 MiB come from a web server (aiohttp, a process of its own, sendfile) into a block
store under FOLDER, which should lie on the disk in question. Measured are: groups of several
sizes that are flushed together, one and two connections, and answers that begin late, as over a
long line. Beside them stands curl, which fetches the same files over one connection into plain
files, neither checked nor flushed. Rows are the best of three (late answers: one), because other
work on the machine only ever slows them down.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from outpost_runtime.update import transfer as transfers
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.fetch.http import HttpFetcher
from outpost_runtime.update.planning import Holdings, plan_update
from outpost_runtime.update.release import Block, Release, ReleasedFile, block_path
from outpost_runtime.update.transfer import transfer

ROOT = Path(__file__).parents[1]
COUNT, SIZE = 300, 1 << 20
ROUNDS = 3
PORT = 18090
_PLENTY = 1 << 50


def main() -> None:
    """Measure, and print one line for each row."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/bench-transfer").absolute()
    release = _make_repository(folder / "repository")
    default = transfers.GROUP
    with serving(folder):
        for group in (1, 4, 16, default, COUNT):
            _row(f"groups of {group}", folder, release, group=group)
        _row("never flushed", folder, release, flush=lambda _: None)
        _print("curl", min(_curl(folder, release) for _ in range(ROUNDS)))
        for delay in (0, 20, 100):
            for workers in (1, 2):
                name = f"{delay} ms before each answer, {workers} connections"
                _row(name, folder, release, workers=workers, delay=delay)
    shutil.rmtree(folder)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve ``folder/repository`` in a process of its own; gives its URL."""
    command = [sys.executable, "-m", "bench.transfer", "serve", str(folder)]
    with subprocess.Popen(command, cwd=ROOT) as server:
        try:
            _wait_until_it_listens()
            yield f"http://127.0.0.1:{PORT}/0"
        finally:
            server.terminate()


def _row(
    name: str,
    folder: Path,
    release: Release,
    *,
    group: int = transfers.GROUP,
    workers: int = 1,
    delay: int = 0,
    flush: Callable[[int], None] = os.fsync,
) -> None:
    transfers.GROUP, os.fsync, kept = group, flush, (transfers.GROUP, os.fsync)  # type: ignore[assignment]
    try:
        seconds = min(
            _once(folder / "store", release, workers, delay) for _ in range(1 if delay else ROUNDS)
        )
    finally:
        transfers.GROUP, os.fsync = kept
    _print(name, seconds)


def _print(name: str, seconds: float) -> None:
    print(f"{name:45} {COUNT * SIZE / 1e6 / seconds:7.0f} MB/s  {seconds:6.2f} s", flush=True)


def _curl(folder: Path, release: Release) -> float:
    shutil.rmtree(folder / "curl", ignore_errors=True)
    (folder / "curl").mkdir()
    os.sync()
    config = folder / "curl.txt"
    with config.open("w") as file:
        for block in release.blocks():
            file.write(f'url = "http://127.0.0.1:{PORT}/0/{block_path(block.id)}"\n')
            file.write(f'output = "{folder / "curl" / block.id}"\n')
    begin = time.perf_counter()
    subprocess.run(
        [shutil.which("curl") or "curl", "--silent", "--fail", "--config", str(config)], check=True
    )
    return time.perf_counter() - begin


def _once(folder: Path, release: Release, workers: int, delay: int) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    store = BlockStore(folder / "blocks")
    plan = plan_update([release], [], Holdings(blocks={}, partials={}, free=_PLENTY, spare=0), [])
    fetchers = [HttpFetcher(f"http://127.0.0.1:{PORT}/{delay}") for _ in range(workers)]
    begin = time.perf_counter()
    done = transfer(plan, store, fetchers, lambda *_: b"", stop=threading.Event())
    seconds = time.perf_counter() - begin
    assert done.finished
    for fetcher in fetchers:
        fetcher.close()
    return seconds


def _make_repository(folder: Path) -> Release:
    blocks = []
    for _ in range(COUNT):
        data = os.urandom(SIZE)
        block = Block(id=hashlib.sha256(data).hexdigest(), size=SIZE, stored=SIZE)
        path = folder / block_path(block.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        blocks.append(block)
    file = ReleasedFile(name="manifest.json", blocks=tuple(blocks))
    return Release(
        name="bench",
        version="1",
        target="cpu-int8",
        bundle="0" * 64,
        base=None,
        key="0" * 64,
        memory_bytes=0,
        files=(file,),
        deltas=(),
    )


def _wait_until_it_listens() -> None:
    fetcher = HttpFetcher(f"http://127.0.0.1:{PORT}/0")
    for _ in range(100):
        try:
            list(fetcher.read("ready", limit=100))
        except Exception:  # noqa: BLE001 - whatever it is, we wait
            time.sleep(0.1)
        else:
            fetcher.close()
            return
    raise AssertionError("the web server did not begin to listen")


def serve(folder: str) -> None:
    """Serve the repository; the first part of a path is how many milliseconds to wait."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(int(request.match_info["delay"]) / 1000)
        if request.match_info["path"] == "ready":
            return web.Response(text="ready")
        return web.FileResponse(Path(folder) / "repository" / request.match_info["path"])

    app = web.Application()
    app.router.add_get("/{delay}/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["serve"] else main()
