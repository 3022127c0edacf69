"""Bundles for boxes in an emulator: the tiny ones, made larger."""

import dataclasses
import os
import shutil
from pathlib import Path

from outpost_runtime.bundle import describe_file, read_bundle, write_manifest

_PIECE = 1 << 20


def larger_version(bundle: Path, target: Path, version: str, size: int) -> Path:
    """Copy a bundle as another version, with so many bytes beside it that nothing compresses."""
    copy = Path(shutil.copytree(bundle, target / f"{bundle.name}-{version}"))
    with (copy / "ballast.bin").open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(os.urandom(min(_PIECE, size - start)))
    manifest = read_bundle(copy).manifest
    files = {**manifest.files, "ballast.bin": describe_file(copy / "ballast.bin")}
    write_manifest(copy, dataclasses.replace(manifest, version=version, files=files))
    return copy
