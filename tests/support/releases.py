"""Bundles to publish, without a build; and what a box makes of what was published."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from outpost_runtime.bundle import Bundle, describe_file, read_bundle, write_manifest
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.coding import decode
from outpost_runtime.update.delta_index import delta_path, parse_delta_index
from outpost_runtime.update.encryption import unseal
from outpost_runtime.update.making import make_block
from outpost_runtime.update.release import Block, Release

from tests.support.fixtures import CLASSIFIER

Arrays = dict[str, np.ndarray]


def weights(seed: int = 1) -> Arrays:
    """Some tensors of several kinds, large and small."""
    random = np.random.default_rng(seed)
    return {
        "embedding": random.integers(0, 256, (500, 2600)).astype(np.uint8),
        "bias": random.normal(size=300).astype(np.float32),
        "half": random.normal(size=(300, 400)).astype(np.float16),
        "scales": random.normal(size=700).astype(np.float32),
        "matrix": random.integers(100, 150, (400, 300)).astype(np.uint8),
    }


def tuned(arrays: Arrays, *names: str, seed: int = 2) -> Arrays:
    """The same tensors, some of them changed a little, as a fine-tune on a frozen grid does."""
    random = np.random.default_rng(seed)
    changed = {}
    for name in names:
        array = arrays[name]
        if array.dtype == np.uint8:
            step = random.choice([0, 0, 0, 0, 0, 0, 1, 255], array.shape).astype(np.uint8)
            changed[name] = array + step
        else:
            noise = random.normal(size=array.shape) * 0.002
            changed[name] = (array * (1 + noise)).astype(array.dtype)
    return arrays | changed


def write_graph(path: Path, arrays: Arrays, *, external: str | None) -> None:
    """Write a graph that has these tensors, and no use for them."""
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Shape", [name], [f"{name}_shape"]) for name in arrays]
    outputs = [
        helper.make_tensor_value_info(f"{name}_shape", TensorProto.INT64, [array.ndim])
        for name, array in arrays.items()
    ]
    model = helper.make_model(helper.make_graph(nodes, "tiny", [], outputs, tensors))
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0}
    (path.parent / (external or "")).unlink(missing_ok=True) if external else None
    onnx.save_model(model, path, **(options if external else {}))


def write_bundle(folder: Path, arrays: Arrays, *, version: str = "1", text: str = "{}") -> Bundle:
    """Write a bundle with these tensors beside its graph, and a text in its tokenizer's place."""
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx", arrays, external="model.onnx.data")
    (folder / "tokenizer.json").write_text(text)
    (folder / "golden.safetensors").write_bytes((CLASSIFIER / "golden.safetensors").read_bytes())
    files = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    manifest = dataclasses.replace(
        read_bundle(CLASSIFIER).manifest, name="toy", version=version, files=files
    )
    return write_manifest(folder, manifest)


def files_of(release: Release, blocks: BlockStore, key: bytes) -> dict[str, bytes]:
    """What a box has when it has a release's blocks."""
    return {
        file.name: b"".join(
            decode(unseal(blocks.read(block.id), key), block.size) for block in file.blocks
        )
        for file in release.files
    }


def update(folder: Path, release: Release, device: BlockStore, source: str, key: bytes) -> int:
    """Bring a box from one bundle to a release, by deltas where there are some.

    Returns:
        The bytes that were fetched.
    """
    fetched, repository = 0, BlockStore(folder / "blocks")
    deltas = {}
    for reference in release.deltas:
        if reference.bundle == source:
            data = (folder / delta_path(reference.index)).read_bytes()
            assert len(data) == reference.index_bytes
            fetched += len(data)
            deltas = {delta.block: delta for delta in parse_delta_index(data).deltas}
            assert reference.stored == sum(delta.stored for delta in deltas.values())
    for block in release.blocks():
        if device.has(block.id):
            continue
        delta = deltas.get(block.id)
        data = repository.read(block.id if delta is None else delta.id)
        fetched += len(data)
        if delta is not None:
            assert len(data) == delta.stored
            data = make_block(data, device.read(delta.source), block, key)
        device.put(block.id, data)
    return fetched


def contents(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle."""
    return {path.name: path.read_bytes() for path in bundle.folder.iterdir()}


def missing(folder: Path, release: Release) -> list[Block | str]:
    """What a release names that is not in its repository, or is damaged."""
    blocks = BlockStore(folder / "blocks")
    deltas = [
        delta.id
        for reference in release.deltas
        for delta in parse_delta_index((folder / delta_path(reference.index)).read_bytes()).deltas
    ]
    return [
        name for name in [*(b.id for b in release.blocks()), *deltas] if not _is_right(blocks, name)
    ]


def _is_right(blocks: BlockStore, name: str) -> bool:
    if not blocks.has(name):
        return False
    blocks.read(name)
    return True
