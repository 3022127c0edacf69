"""Systems of a device image that are a few kilobytes, packed as ``outpost-export`` packs them.

Made without it, since the device's tests need no exporter; a test of the exporter compares.
"""

import hashlib
import random
from pathlib import Path

from outpost_runtime.bundle import FolderBundle, describe_file, write_manifest
from outpost_runtime.documents import canonical_json
from outpost_runtime.interface import SystemInterface
from outpost_runtime.manifest import Evidence, Manifest, Provenance

_SPARSE_BYTES = 3 << 20


def built(
    folder: Path, number: int, image: str = "outpost", system_bytes: int = _SPARSE_BYTES
) -> Path:
    """Write what a build leaves, half of a large system filled; returns the kernel image."""
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / f"{image}_{number}"
    kernel = start.with_suffix(".efi")
    kernel.write_bytes(b"MZ a kernel %d" % number)
    with (folder / f"{start.name}.system.{number:032x}.raw").open("wb") as file:
        file.write(b"a root file system %d" % number)
        if system_bytes > _SPARSE_BYTES:
            file.write(random.Random(number).randbytes(system_bytes // 2))  # noqa: S311 - no secret
        file.truncate(system_bytes)
    (folder / f"{start.name}.verity.{number:032x}.raw").write_bytes(b"hashes %d" % number)
    (folder / f"{start.name}.cdx.json").write_text("{}")
    return kernel


def packed(
    folder: Path, number: int, image: str = "outpost", system_bytes: int = _SPARSE_BYTES
) -> FolderBundle:
    """Pack a system of that number."""
    made = folder / f"{image}-{number}"
    kernel = built(made, number, image, system_bytes)
    empty = hashlib.sha256(b"").hexdigest()
    manifest = Manifest(
        name="system",
        version=str(number),
        task="system",
        target=f"system-{image}",
        files={path.name: describe_file(path) for path in sorted(made.iterdir())},
        interface=SystemInterface(model=kernel.name, image=image),
        memory_bytes=0,
        evidence=Evidence(figures={}, thresholds={}, accepted_worse=None, golden="", tolerances={}),
        licence=f"see {image}_{number}.cdx.json",
        provenance=Provenance(
            source={},
            adapter={},
            recipe={},
            recipe_sha256=hashlib.sha256(canonical_json({})).hexdigest(),
            evaluation_sha256=empty,
            versions={},
        ),
    )
    return write_manifest(made, manifest)
