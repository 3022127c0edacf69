"""Content-defined chunking of two versions, in the peers' environment.

    python -m bench.chunk_worker versions
    python -m bench.chunk_worker measure OLD_FILES NEW_FILES SCRATCH    # JSON lists of paths

hf-xet is the real client: with a ``local://`` address it keeps its chunks in a folder instead of
Hugging Face's store, so it runs without a network, and says itself how many bytes it uploads.
"""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import hf_xet
import zstandard
from fastcdc import fastcdc

_AVERAGE = 64 << 10
_LEVEL = 9
_PACKAGES = ("hf-xet", "fastcdc", "zstandard")


def main(task: str, *arguments: str) -> None:
    """Answer with one JSON object."""
    if task == "versions":
        found: dict[str, object] = {name: version(name) for name in _PACKAGES}
    else:
        old, new, scratch = json.loads(arguments[0]), json.loads(arguments[1]), arguments[2]
        found = {"chunks": chunk_bytes(old, new), "xet": xet_bytes(old, new, scratch)}
    print(json.dumps(found))


def chunk_bytes(old: list[str], new: list[str]) -> int:
    """Return the compressed bytes of the chunks that only the new files have."""
    known = {digest for path in old for digest, _ in _chunks(path)}
    compressor, size = zstandard.ZstdCompressor(level=_LEVEL), 0
    for path in new:
        for digest, chunk in _chunks(path):
            if digest not in known:
                known.add(digest)
                size += len(compressor.compress(chunk))
    return size


def _chunks(path: str) -> list[tuple[bytes, bytes]]:
    data = Path(path).read_bytes()
    cuts = fastcdc(path, _AVERAGE // 4, _AVERAGE, _AVERAGE * 4)
    parts = (data[cut.offset : cut.offset + cut.length] for cut in cuts)
    return [(hashlib.sha256(part).digest(), part) for part in parts]


def xet_bytes(old: list[str], new: list[str], scratch: str) -> int:
    """Return what the client uploads of the new files where it has uploaded the old ones."""
    os.environ["HF_XET_CACHE"] = f"{scratch}/cache"
    session, endpoint = hf_xet.XetSession(), f"local://{scratch}/store"
    Path(scratch, "store").mkdir()
    uploaded = 0
    for paths in (old, new):
        commit = session.new_upload_commit(endpoint=endpoint)
        for path in paths:
            commit.start_upload_file(path)
        uploaded = commit.wait_to_finish().dedup_metrics.total_bytes_uploaded
    return int(uploaded)


if __name__ == "__main__":
    main(*sys.argv[1:])
