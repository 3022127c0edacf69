"""A device image's system as a bundle: what ``make image`` has built, to be published like a model.

Its files keep the names that systemd-sysupdate finds them by. Nothing is measured here: a system's
gate is the start of the box that took it.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

from outpost_runtime.bundle import FolderBundle, describe_file, write_manifest
from outpost_runtime.documents import canonical_json
from outpost_runtime.interface import SystemInterface
from outpost_runtime.manifest import Evidence, Manifest, Provenance
from outpost_runtime.update.slots import SYSTEM
from outpost_runtime.update.system import is_number, target_of

from outpost_export.errors import PublishError

_KERNEL = re.compile(r"([a-z0-9-]+)_([0-9]+)\.efi")
_PARTS = ("efi", "system.*.raw", "verity.*.raw", "cdx.json")
"""Kernel image, system, its hashes, and what is in them."""


def pack_system(kernel: Path, folder: Path) -> FolderBundle:
    """Make a bundle of the system that a kernel image starts; its files lie beside it.

    Args:
        kernel: ``<image>_<version>.efi``.
        folder: The bundle's; it must not be there yet.

    Raises:
        PublishError: A part is missing or there twice, or a name is none of a system.
    """
    named = _KERNEL.fullmatch(kernel.name)
    if named is None or not is_number(named[2]):
        raise PublishError(
            f"{kernel} is no kernel image of a system.",
            hint="'make image' writes one: .cache/image/out/PROFILE/outpost_1.efi",
        )
    image, version = named[1], named[2]
    parts = [_only(kernel.parent, f"{image}_{version}.{part}") for part in _PARTS]
    try:
        folder.mkdir(parents=True)
        for part in parts:
            _put(part, folder / part.name)
    except OSError as error:
        raise PublishError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return write_manifest(folder, _manifest(image, version, kernel.name, folder))


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise PublishError(
            f"{folder} has {len(found)} files {pattern}, and a system has one.",
            hint="Build the image again.",
        )
    return found[0]


def _put(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _manifest(image: str, version: str, kernel: str, folder: Path) -> Manifest:
    return Manifest(
        name=SYSTEM,
        version=version,
        task="system",
        target=target_of(image),
        files={path.name: describe_file(path) for path in sorted(folder.iterdir())},
        interface=SystemInterface(model=kernel, image=image),
        memory_bytes=0,
        evidence=Evidence(figures={}, thresholds={}, accepted_worse=None, golden="", tolerances={}),
        licence=f"see {image}_{version}.cdx.json",
        provenance=Provenance(
            source={},
            adapter={},
            recipe={},
            recipe_sha256=hashlib.sha256(canonical_json({})).hexdigest(),
            evaluation_sha256=hashlib.sha256(b"").hexdigest(),
            versions={},
        ),
    )
