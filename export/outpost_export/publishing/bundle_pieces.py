"""The pieces of a bundle's files, encoded: in order, some of them ahead, few in memory."""

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from outpost_runtime.bundle import FolderBundle
from outpost_runtime.manifest import MANIFEST_NAME

from outpost_export.publishing.cutting import Cut, cuts
from outpost_export.publishing.encoding import Encoded, Encoder, Source
from outpost_export.publishing.layout import tensors_of
from outpost_export.publishing.predecessors import Predecessor
from outpost_export.publishing.publication import Warehouse

_WORKERS = min(4, os.cpu_count() or 1)

File = bytes | mmap.mmap


def encoded_pieces(
    bundle: FolderBundle, warehouse: Warehouse, found: Sequence[Predecessor]
) -> Iterator[tuple[str, Encoded]]:
    """Give the pieces of all files, each with its file's name, in the order of a release.

    Args:
        bundle: It was verified.
        warehouse: Has the content key, and the predecessors' blocks.
        found: The predecessors, newest first.
    """
    encoder = Encoder(warehouse.content_key, warehouse.blocks.read)
    ahead: deque[tuple[str, Future[Encoded]]] = deque()
    with _opened(bundle) as files, ThreadPoolExecutor(_WORKERS) as pool:
        for name, cut, sources in _pieces(files, found):
            data = files[name][cut.start : cut.end]
            ahead.append((name, pool.submit(encoder.encode, data, cut, sources)))
            if len(ahead) > _WORKERS:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _pieces(
    files: dict[str, File], found: Sequence[Predecessor]
) -> Iterator[tuple[str, Cut, list[Source]]]:
    views = {name: memoryview(file) for name, file in files.items()}
    try:
        tensors = tensors_of(views)
    finally:
        for view in views.values():
            view.release()
    for name, file in sorted(files.items()):
        pieces = cuts(len(file), tensors[name])
        paired = [predecessor.partners(name, pieces) for predecessor in found]
        for index, cut in enumerate(pieces):
            sources = [
                Source(known=predecessor.known, partner=blocks[index])
                for predecessor, blocks in zip(found, paired, strict=True)
            ]
            yield name, cut, sources


@contextlib.contextmanager
def _opened(bundle: FolderBundle) -> Iterator[dict[str, File]]:
    with contextlib.ExitStack() as stack:
        files: dict[str, File] = {MANIFEST_NAME: bundle.manifest_bytes}
        for name, entry in bundle.manifest.files.items():
            if not entry.size:
                files[name] = b""
                continue
            file = stack.enter_context(bundle.path(name).open("rb"))
            files[name] = stack.enter_context(
                mmap.mmap(file.fileno(), entry.size, access=mmap.ACCESS_READ)
            )
        yield files
