"""Remembered prefixes in a file, so that conversations survive a restart of the server.

Off unless an operator asks for it: the file holds what users have written, as tokens
and as keys and values. On a box that has keys it is encrypted with one of them and is
decrypted into memory only (``<digest>.sealed``); elsewhere it is in the clear and only its
owner may read it (``<digest>.safetensors``). One file per bundle, named by the bundle's
digest; what is or is not encrypted is safetensors: ``tokens`` [blocks, BLOCK_TOKENS]
int64, ``parents`` [blocks] int64 (earlier blocks of the file, or -1), ``roots``
[blocks] int64 (which of the adapters named in the metadata, or -1), and the
blocks of every key and value memory [blocks, heads, BLOCK_TOKENS, head_dim].
A file that does not fit is ignored: it saves time, and no answer depends on it.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from outpost_runtime.bundle import sync_folder
from outpost_runtime.errors import TrustError
from outpost_runtime.tensors import Array
from outpost_runtime.text.memory import BLOCK_TOKENS, KeyValueMemory
from outpost_runtime.text.prefix_cache import KeptBlock, PrefixCache, Root
from outpost_runtime.update.encryption import seal_to_file, unseal_file

_FORMAT = "outpost-prefixes/1"
_LOG = logging.getLogger(__name__)


def save(
    folder: Path,
    bundle: str,
    cache: PrefixCache,
    memory: KeyValueMemory,
    key: bytes | None = None,
) -> None:
    """Write everything that is remembered; a file from before is replaced at the end.

    A disk that is full or gone costs the file and nothing else; it is logged.

    Args:
        key: What to encrypt it with, 32 bytes; None leaves it in the clear.
    """
    kept = list(cache.kept())
    temporary = folder / f".{bundle}.new"
    path, other = _paths(folder, bundle, key)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if kept:
            _write(temporary, _content(bundle, kept, memory), bundle, key)
            temporary.replace(path)
        else:
            path.unlink(missing_ok=True)
        other.unlink(missing_ok=True)  # of before the box got its keys, or lost them
        sync_folder(folder)
    except (OSError, safetensors.SafetensorError) as error:  # the latter of its own writing
        with contextlib.suppress(OSError):
            temporary.unlink()
        _LOG.warning("remembered prompts are not saved in %s: %s", folder, error)


def load(
    folder: Path,
    bundle: str,
    cache: PrefixCache,
    memory: KeyValueMemory,
    key: bytes | None = None,
) -> None:
    """Remember what a file holds, as far as there is room; what does not fit is ignored."""
    path, _ = _paths(folder, bundle, key)
    if not path.is_file():
        return
    try:
        _check_size(path, memory)
        with _readable(path, bundle, key) as plain:
            metadata, tensors = _read(plain)
        _check(metadata, tensors, bundle, memory)
        _restore(json.loads(metadata["adapters"]), bundle, tensors, cache, memory)
    except (OSError, ValueError, LookupError, TrustError, safetensors.SafetensorError) as error:
        _LOG.warning("remembered prompts in %s are ignored: %s", path, error)


def _paths(folder: Path, bundle: str, key: bytes | None) -> tuple[Path, Path]:
    """Return the file, and the one that would lie there with or without a key instead."""
    clear, sealed = folder / f"{bundle}.safetensors", folder / f"{bundle}.sealed"
    return (clear, sealed) if key is None else (sealed, clear)


def _context(bundle: str) -> bytes:
    return b"outpost.prompts/1 " + bundle.encode()


@contextlib.contextmanager
def _readable(path: Path, bundle: str, key: bytes | None) -> Iterator[str]:
    """Give a path that the plain file can be read at; it is on no disk."""
    if key is None:
        yield str(path)
        return
    with os.fdopen(os.memfd_create("prompts", os.MFD_CLOEXEC), "wb") as plain:
        with path.open("rb") as file:
            unseal_file(file, plain, key, _context(bundle))
        plain.flush()
        yield f"/proc/self/fd/{plain.fileno()}"


def _read(path: str) -> tuple[dict[str, str], dict[str, Any]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _tensors(kept: list[KeptBlock], memory: KeyValueMemory) -> dict[str, Array]:
    places = {block.number: place for place, block in enumerate(kept)}
    adapters = _adapters(kept)
    parents, roots = [], []
    own_root: dict[int, Root] = {}
    for block in kept:
        root = block.parent if isinstance(block.parent, Root) else own_root[block.parent]
        own_root[block.number] = root
        parents.append(-1 if isinstance(block.parent, Root) else places[block.parent])
        roots.append(-1 if root.adapter is None else adapters.index(root.adapter))
    return {
        "tokens": np.array([block.tokens for block in kept], np.int64),
        "parents": np.array(parents, np.int64),
        "roots": np.array(roots, np.int64),
    } | memory.export_blocks([block.number for block in kept])


def _adapters(kept: list[KeptBlock]) -> list[str]:
    roots = {block.parent for block in kept if isinstance(block.parent, Root)}
    return sorted({root.adapter for root in roots if root.adapter is not None})


def _metadata(bundle: str, kept: list[KeptBlock]) -> dict[str, str]:
    return {"format": _FORMAT, "bundle": bundle, "adapters": json.dumps(_adapters(kept))}


def _content(bundle: str, kept: list[KeptBlock], memory: KeyValueMemory) -> bytes:
    tensors = _tensors(kept, memory)
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content: bytes = safetensors.numpy.save(contiguous, _metadata(bundle, kept))
    return content


def _write(path: Path, content: bytes, bundle: str, key: bytes | None) -> None:
    path.unlink(missing_ok=True)  # of a cut before
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if key is None:
            file.write(content)
        else:
            seal_to_file(content, file, key, _context(bundle))
        file.flush()
        os.fsync(file.fileno())


def _check_size(path: Path, memory: KeyValueMemory) -> None:
    if path.stat().st_size > 2 * memory.bytes:  # never written by a cache of this size
        raise ValueError("it is larger than the memory for it")


def _check(
    metadata: dict[str, str], tensors: dict[str, Any], bundle: str, memory: KeyValueMemory
) -> None:
    if metadata.get("format") != _FORMAT or metadata.get("bundle") != bundle:
        raise ValueError("it was written for another bundle or by another version")
    count = len(tensors["tokens"])
    wanted = {"tokens": (count, BLOCK_TOKENS), "parents": (count,), "roots": (count,)}
    wanted |= {name: (count, *shape) for name, shape in memory.block_shapes().items()}
    if {name: array.shape for name, array in tensors.items()} != wanted:
        raise ValueError("its tensors have other shapes than this model's")
    if not (tensors["parents"] < np.arange(count)).all():
        raise ValueError("its blocks are not in order")


def _restore(
    adapters: list[str],
    bundle: str,
    tensors: dict[str, Any],
    cache: PrefixCache,
    memory: KeyValueMemory,
) -> None:
    chains: list[list[int]] = []  # per block of the file: the places of its ancestors and its own
    blocks = [name for name in tensors if name not in ("tokens", "parents", "roots")]
    for place in range(len(tensors["tokens"])):
        parent = int(tensors["parents"][place])
        chains.append([*(chains[parent] if parent >= 0 else []), place])
        root = int(tensors["roots"][chains[-1][0]])
        computed_by = Root(bundle=bundle, adapter=adapters[root] if root >= 0 else None)
        text = tensors["tokens"][chains[-1]].ravel().tolist()
        # Ancestors may have made room for others meanwhile, and then come back with it.
        for block, first in cache.add(computed_by, text):
            source = chains[-1][first // BLOCK_TOKENS]
            memory.import_block(block, {name: tensors[name][source] for name in blocks})
