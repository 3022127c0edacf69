"""A publisher of sealed bundles and boxes that follow it, all real but the network."""

import dataclasses
import hashlib
from pathlib import Path

from outpost_runtime.bundle import FolderBundle, write_durably
from outpost_runtime.update.box import Box, Provisioning, provision
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.coding import Kind, encode_delta
from outpost_runtime.update.content_keys import (
    content_key_id,
    encode_wrapped_key,
    wrap_content_key,
    wrapped_key_path,
)
from outpost_runtime.update.delta_index import Delta, DeltaIndex, delta_path, encode_delta_index
from outpost_runtime.update.encryption import seal
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.offers import SignedOffer
from outpost_runtime.update.release import DeltaReference, Release, block_path, encode_release
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.sync import Outcome, sync

from tests.support.publisher import NOW, MemoryFetcher, Publisher
from tests.support.sealed import KEY, Blocks, released


class Fleet:
    """A publisher, and how its boxes are made and updated."""

    def __init__(self, now: int = NOW) -> None:
        self.publisher = Publisher(now=now)
        self.counter = 0

    def publish(
        self,
        bundle: FolderBundle,
        *,
        predecessor: FolderBundle | None = None,
        key: bytes = KEY,
        **changes,
    ) -> SignedOffer:
        """Publish a bundle, with byte-wise deltas from a predecessor of equal sizes."""
        blocks = Blocks()
        release = released(bundle, blocks, key=key)
        if predecessor is not None:
            release = self._with_deltas(release, bundle, predecessor)
        for block_id, data in blocks.items():
            self.publisher.files[block_path(block_id)] = data
        self.counter += 1
        offer = Offer(
            name=release.name,
            version=release.version,
            release=self.counter,
            target=release.target,
            bundle=release.bundle,
        )
        offer = dataclasses.replace(offer, **changes)
        return self.publisher.publish(offer, encode_release(release))

    def box(self, folder: Path, **wishes) -> Box:
        """Provision a box and grant it the content key."""
        fields = {"model": "press-terminal", "sources": ("memory",), **wishes}
        box = provision(folder, self.publisher.root_bytes, Provisioning(**fields))
        self.grant(box)
        return box

    def grant(self, box: Box, key: bytes = KEY) -> None:
        identity = box.own.identity(box.device.model)
        path = wrapped_key_path(content_key_id(key), identity.recipient)
        wrapped = wrap_content_key(key, identity.encryption_key)
        self.publisher.files[path] = encode_wrapped_key(wrapped)

    def update(
        self, box: Box, fetcher: MemoryFetcher | None = None, *, now: float = NOW, **wishes
    ) -> Outcome:
        """Sync a box once, over one connection."""
        sources = Sources(fetchers=(fetcher or self.publisher.fetcher(),))
        return sync(box, sources, now, Wishes(**wishes))

    def write(self, folder: Path) -> None:
        """Write the repository as it is, timestamps last, as a publisher does."""
        files = sorted(
            self.publisher.files.items(), key=lambda item: item[0].startswith("metadata")
        )
        for path, data in files:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target, data)

    def _with_deltas(
        self, release: Release, bundle: FolderBundle, predecessor: FolderBundle
    ) -> Release:
        before = released(predecessor, Blocks())
        old = {file.name: file for file in before.files}
        deltas = []
        for file in release.files:
            blocks = old[file.name].blocks
            if [b.size for b in blocks] == [b.size for b in file.blocks]:
                contents = [each.path(file.name).read_bytes() for each in (predecessor, bundle)]
                deltas += self._deltas(blocks, file.blocks, *contents)
        index = encode_delta_index(DeltaIndex(deltas=tuple(deltas)))
        digest = hashlib.sha256(index).hexdigest()
        self.publisher.files[delta_path(digest)] = index
        reference = DeltaReference(
            bundle=before.bundle,
            index=digest,
            index_bytes=len(index),
            stored=sum(delta.stored for delta in deltas),
        )
        return dataclasses.replace(release, deltas=(reference,))

    def _deltas(self, old, new, before: bytes, after: bytes) -> list[Delta]:
        deltas, start = [], 0
        for source, block in zip(old, new, strict=True):
            part = slice(start, start + block.size)
            start += block.size
            if source.id != block.id:
                stored = seal(encode_delta(Kind.INT8, after[part], before[part]), KEY)
                name = hashlib.sha256(stored).hexdigest()
                self.publisher.files[block_path(name)] = stored
                deltas.append(Delta(source=source.id, block=block.id, id=name, stored=len(stored)))
        return deltas


def released_key() -> str:
    """The identity of the content key of all releases here."""
    return content_key_id(KEY)
