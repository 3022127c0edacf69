"""A released bundle, opened from encrypted blocks: what is plain of it is in memory, nowhere else.

Rules:

1. The key is the one that the release names, by its identity.
2. The manifest's digest is the bundle that the release names; name, version, target, and every
   file's size are the same in both. All this before anything else is read.
3. A block comes from whoever stores it, checked by its digest; it must open with the key, and be as
   long as the release says. So it is what the release's signer encrypted.
4. Files that are read whole are compared with the manifest's digests (``Bundle.read``, ``verify``).
   Weights are not read whole when a model is opened: each goes to its place, block by block.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, StoreError, TrustError
from outpost_runtime.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    bundle_digest,
    parse_manifest,
)
from outpost_runtime.update.coding import decode
from outpost_runtime.update.content_keys import content_key_id
from outpost_runtime.update.encryption import unseal
from outpost_runtime.update.release import Block, Release, ReleasedFile

ReadBlock = Callable[[str], bytes]
"""Gives a block's stored bytes by its id, digest checked; StoreError: missing or damaged."""

_FETCH_AGAIN = "Let this box fetch it again."
_PUBLISH_AGAIN = "Publish it again: what was signed does not fit together."


def open_sealed(release: Release, read_block: ReadBlock, key: bytes) -> Bundle:
    """Return a released bundle whose files are decrypted as they are read.

    Args:
        release: Verified before.
        key: The content key.

    Raises:
        TrustError: The key is another one, or the manifest is not what the release names.
        BundleError: The manifest's blocks are missing or damaged, or it is of a foreign format.
    """
    title = f"'{release.name}' {release.version}"
    if content_key_id(key) != release.key:
        raise TrustError(
            f"The key at hand is not the one that {title} is encrypted with.",
            hint="Let this box fetch its keys again.",
        )
    contents = SealedContents(release, read_block, key)
    size = contents.size(MANIFEST_NAME)
    if size > MAX_MANIFEST_BYTES:
        raise TrustError(f"The manifest of {title} has {size:,} bytes.", hint=_PUBLISH_AGAIN)
    data = b"".join(contents.pieces(MANIFEST_NAME))
    if bundle_digest(data) != release.bundle:
        raise TrustError(
            f"The manifest of {title} is not the one that its release names.", hint=_PUBLISH_AGAIN
        )
    manifest = parse_manifest(data)
    _check_agreement(release, manifest, title)
    return Bundle(contents=contents, manifest=manifest, manifest_bytes=data)


class SealedContents:
    """The files of a release; see :class:`outpost_runtime.contents.Contents`."""

    def __init__(self, release: Release, read_block: ReadBlock, key: bytes) -> None:
        self._title = f"'{release.name}' {release.version}"
        self._files = {file.name: _Layout.of(file) for file in release.files}
        self._read_block = read_block
        self._key = key
        self._last: tuple[str, bytes] = ("", b"")

    def place(self, name: str) -> str:
        """See :class:`Contents`."""
        return f"{name} of {self._title}"

    def size(self, name: str) -> int:
        """Return how many bytes a file has.

        Raises:
            BundleError: There is no such file.
        """
        return self._layout(name).size

    def pieces(self, name: str, *, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """See :class:`Contents`."""
        layout = self._layout(name)
        stop = layout.size if size is None else min(start + size, layout.size)
        index = bisect_right(layout.ends, start)
        while start < stop:
            block, end = layout.blocks[index], layout.ends[index]
            first = end - block.size
            part = slice(start - first, min(stop, end) - first)
            yield self._plain(name, block, part)
            start, index = end, index + 1

    def stranger(self, listed: Collection[str]) -> str | None:
        """See :class:`Contents`."""
        return next((self.place(name) for name in self._files if name not in listed), None)

    def path(self, name: str) -> Path | None:  # noqa: ARG002 - the contract's
        """See :class:`Contents`."""
        return None

    def _layout(self, name: str) -> "_Layout":
        layout = self._files.get(name)
        if layout is None:
            raise BundleError(f"{self._title} was released without {name}.", hint=_PUBLISH_AGAIN)
        return layout

    def _plain(self, name: str, block: Block, part: slice) -> bytes:
        if part.stop - part.start == block.size:
            return self._decrypted(name, block)
        # Small tensors share a block, and are asked for one after the other.
        known, plain = self._last
        if known != block.id:
            plain = self._decrypted(name, block)
            self._last = block.id, plain
        return plain[part]

    def _decrypted(self, name: str, block: Block) -> bytes:
        try:
            return decode(unseal(self._read_block(block.id), self._key), block.size)
        except (StoreError, TrustError) as error:
            raise BundleError(
                f"A part of {self.place(name)} cannot be used: {error.message}", hint=_FETCH_AGAIN
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """A file's blocks, and where in the file each of them ends."""

    blocks: tuple[Block, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, file: ReleasedFile) -> "_Layout":
        ends = tuple(accumulate(block.size for block in file.blocks))
        return cls(blocks=file.blocks, ends=ends)

    @property
    def size(self) -> int:
        return self.ends[-1] if self.ends else 0


def _check_agreement(release: Release, manifest: Manifest, title: str) -> None:
    named = (release.name, release.version, release.target)
    if named != (manifest.name, manifest.version, manifest.target):
        raise TrustError(
            f"The release of {title} for {release.target} is of the bundle "
            f"'{manifest.name}' {manifest.version} for {manifest.target}.",
            hint=_PUBLISH_AGAIN,
        )
    listed = {name: entry.size for name, entry in manifest.files.items()}
    released = {file.name: file.size for file in release.files if file.name != MANIFEST_NAME}
    for name in sorted(listed.keys() | released.keys()):
        if listed.get(name) != released.get(name):
            raise TrustError(
                f"The release of {title} and its manifest do not say the same of {name}.",
                hint=_PUBLISH_AGAIN,
            )
