"""Candidates in a store without any update: bundles copied in, slots that name them."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

from outpost_runtime.bundle import Bundle, describe_file, read_bundle, write_manifest
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.slots import Candidate, Slot
from safetensors.numpy import load_file, save_file


def version_of(folder: Path, target: Path, version: str, **changes) -> Bundle:
    """Copy a bundle under another version, and so another digest."""
    copy = Path(shutil.copytree(folder, target / f"{folder.name}-{version}"))
    manifest = dataclasses.replace(read_bundle(copy).manifest, version=version, **changes)
    return write_manifest(copy, manifest)


def adapter_of(folder: Path, base: Bundle, target: Path, version: str) -> Bundle:
    """Copy an adapter as one of another base."""
    interface = dataclasses.replace(read_bundle(folder).manifest.interface, base=base.digest)
    return version_of(folder, target, version, interface=interface)


def spoiled(folder: Path, target: Path, version: str) -> Bundle:
    """Copy a bundle whose golden outputs are not what its model gives."""
    copy = Path(shutil.copytree(folder, target / f"{folder.name}-{version}"))
    manifest = read_bundle(copy).manifest
    golden = copy / manifest.evidence.golden
    tensors = load_file(golden)
    for name, values in tensors.items():
        if "outputs" in name or name == "top_tokens":
            tensors[name] = values + 1
    save_file(tensors, golden)
    files = {**manifest.files, manifest.evidence.golden: describe_file(golden)}
    return write_manifest(copy, dataclasses.replace(manifest, version=version, files=files))


def wait_for_gate(store: Store, *bundles: Bundle, release: int = 2) -> None:
    """Copy bundles into a store and make them candidates of their names."""
    with store._changing():
        slots = store.slots()
        for bundle in bundles:
            interface = bundle.manifest.interface
            base = interface.base if isinstance(interface, AdapterInterface) else None
            candidate = Candidate(bundle=bundle.digest, release=release, with_base=base)
            name = bundle.manifest.name
            slot = slots.get(name, Slot())
            store._copy_in(bundle, None)
            store._files.apply(activation.stage(name, slot, candidate, int(time.time())))


def history(store: Store) -> list[tuple[str, str]]:
    """What became of the store's bundles, as pairs of name and word."""
    return [(line["name"], line["what"]) for line in store.history()]


def raw_slot(store: Store, name: str) -> dict:
    """A slot file as it lies on the disk."""
    return json.loads((store.folder / "slots" / f"{name}.json").read_text())
