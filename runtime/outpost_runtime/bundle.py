"""Bundles: ``manifest.json`` and exactly the files that it lists, in a folder or elsewhere."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.contents import DAMAGED, Contents, FolderContents
from outpost_runtime.errors import BundleError, UnsupportedError
from outpost_runtime.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    bundle_digest,
    encode_manifest,
    parse_manifest,
)

RUNNABLE_TARGETS = ("cpu-fp32", "cpu-int8", "cpu-int4")
"""Targets whose bundles this runtime can open."""

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle whose manifest has been read; :func:`verify` says whether its files are right."""

    contents: Contents
    manifest: Manifest
    manifest_bytes: bytes

    def read(self, name: str) -> bytes:
        """Return one of the listed files, checked.

        Raises:
            BundleError: The file is missing, unreadable, or not what the manifest lists.
        """
        parts: list[bytes] = []
        read_file(self, name, self.manifest.files[name], parts.append)
        return b"".join(parts)

    @property
    def digest(self) -> str:
        """The bundle's identity."""
        return bundle_digest(self.manifest_bytes)

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.size for entry in self.manifest.files.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderBundle(Bundle):
    """A bundle whose files lie in a folder as they are."""

    contents: FolderContents

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.contents.folder

    def path(self, name: str) -> Path:
        """Return where a file of this bundle lies."""
        return self.contents.path(name)


def read_bundle(folder: Path) -> FolderBundle:
    """Read a bundle's manifest; its files are not touched.

    Raises:
        BundleError: There is no manifest, or it is no manifest of a known format.
    """
    contents = FolderContents(folder)
    data = _read_manifest_bytes(contents)
    return FolderBundle(contents=contents, manifest=parse_manifest(data), manifest_bytes=data)


def check_runnable(bundle: Bundle) -> None:
    """Refuse a bundle that was built for something else.

    Raises:
        UnsupportedError: Its target is not one that this runtime runs.
    """
    manifest = bundle.manifest
    if manifest.target not in RUNNABLE_TARGETS:
        raise UnsupportedError(
            f"The bundle '{manifest.name}' is built for {manifest.target}; "
            f"this runtime runs {', '.join(RUNNABLE_TARGETS)}.",
            hint="Build it for one of these targets.",
        )


def verify(bundle: Bundle, progress: Progress | None = None) -> None:
    """Check that there are exactly the listed files with the listed bytes.

    Raises:
        BundleError: A file is missing, damaged or not listed; it is named.
    """
    check_no_strangers(bundle)
    for name, entry in bundle.manifest.files.items():
        read_file(bundle, name, entry, lambda _: None, progress)


def check_no_strangers(bundle: Bundle) -> None:
    """Refuse files and links that the manifest does not list.

    Raises:
        BundleError: There is one; it is named.
    """
    stranger = bundle.contents.stranger({*bundle.manifest.files, MANIFEST_NAME})
    if stranger is not None:
        raise BundleError(f"{stranger} is not listed in the bundle's manifest.", hint=DAMAGED)


def read_file(
    bundle: Bundle,
    name: str,
    entry: FileEntry,
    sink: Callable[[bytes], object],
    progress: Progress | None = None,
) -> None:
    """Read one file of a bundle into ``sink`` and check it on the way.

    The last bytes may have reached ``sink`` when the check fails: persist nothing before it ends.

    Raises:
        BundleError: The file is missing, unreadable, or not what the manifest lists.
    """
    digest, rest = hashlib.sha256(), entry.size
    for chunk in bundle.contents.pieces(name, size=entry.size + 1):
        rest -= len(chunk)
        digest.update(chunk)
        if rest < 0:
            break
        sink(chunk)
        if progress:
            progress(len(chunk))
    if rest != 0 or digest.hexdigest() != entry.sha256:
        place = bundle.contents.place(name)
        raise BundleError(f"{place} is not the file that the manifest lists.", hint=DAMAGED)


def describe_file(path: Path) -> FileEntry:
    """Return size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size=path.stat().st_size, sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> FolderBundle:
    """Complete a folder of files to a bundle; its files must be those the manifest lists."""
    data = encode_manifest(manifest)
    write_durably(folder / MANIFEST_NAME, data)
    return read_bundle(folder)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a power cut it has either the old or the new content."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest_bytes(contents: FolderContents) -> bytes:
    try:
        data = b"".join(contents.pieces(MANIFEST_NAME, size=MAX_MANIFEST_BYTES + 1))
    except BundleError as error:
        raise BundleError(
            f"{contents.folder} is not a bundle: {error.message}",
            hint="A bundle is a folder made by 'outpost-export build'.",
        ) from error
    if len(data) > MAX_MANIFEST_BYTES:
        place = contents.place(MANIFEST_NAME)
        raise BundleError(f"{place} is larger than {MAX_MANIFEST_BYTES} bytes.")
    return data
