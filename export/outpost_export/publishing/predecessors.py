"""Predecessors: earlier bundles of a name, and the deltas that lead from their blocks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from outpost_runtime.bundle import Bundle
from outpost_runtime.update.content_keys import content_key_id
from outpost_runtime.update.delta_index import Delta, DeltaIndex, encode_delta_index
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.release import Block, Release

from outpost_export.publishing.cutting import Cut
from outpost_export.publishing.encoding import Encoded, partners
from outpost_export.publishing.publication import Order, Warehouse, Way


@dataclass(slots=True)
class Predecessor:
    """An earlier release.

    Attributes:
        known: Its blocks; a box that runs it has them.
        deltas: Those from it, by the block that they make; filled while the bundle is encoded.
    """

    offer: Offer
    release: Release
    known: frozenset[str]
    deltas: dict[str, Delta] = field(default_factory=dict)

    def partners(self, name: str, pieces: Sequence[Cut]) -> list[Block | None]:
        """Return for each new piece of a file the block that lay at its place."""
        old = next((file.blocks for file in self.release.files if file.name == name), ())
        return partners(old, pieces)

    def index(self) -> bytes:
        """Return the index of its deltas; no bytes where there are none."""
        deltas = tuple(self.deltas[block] for block in sorted(self.deltas))
        return encode_delta_index(DeltaIndex(deltas=deltas)) if deltas else b""

    def way(self, sizes: dict[str, int]) -> Way:
        """Return what an update from here moves.

        Args:
            sizes: Stored bytes of all blocks of the new release.
        """
        missing = {block_id: size for block_id, size in sizes.items() if block_id not in self.known}
        full = sum(missing.values())
        saved = sum(missing[delta.block] - delta.stored for delta in self.deltas.values())
        return Way(
            offer=self.offer,
            blocks=len(missing),
            full=full,
            moved=full - saved + len(self.index()),
            deltas=len(self.deltas),
        )


def predecessors(
    bundle: Bundle, order: Order, offers: Iterable[Offer], warehouse: Warehouse
) -> Iterator[Predecessor]:
    """Give the newest releases of this name and target, one of each bundle, as many as ordered.

    One of this very bundle comes in addition: what is right there is not made again.

    Args:
        bundle: The new bundle.
        order: Says how many.
        offers: All offers of the repository, newest first.
        warehouse: Has the releases.
    """
    key = content_key_id(warehouse.content_key)
    found: set[str] = set()
    for offer in offers:
        others = found - {bundle.digest}
        wanted = offer.bundle == bundle.digest or len(others) < order.predecessors
        if not _is_of(offer, bundle) or not wanted or offer.bundle in found:
            continue
        release = warehouse.shelf.release(offer)
        if release.key == key:  # nobody opens blocks of two keys for one delta
            found.add(offer.bundle)
            known = frozenset(block.id for block in release.blocks())
            yield Predecessor(offer, release, known)


def newest(
    bundle: Bundle, offers: Iterable[Offer], found: Iterable[Predecessor]
) -> Predecessor | None:
    """Return the one that is offered now, if it is among those that were found."""
    offered = next((offer for offer in offers if _is_of(offer, bundle)), None)
    return next((predecessor for predecessor in found if predecessor.offer == offered), None)


def note(encoded: Encoded, found: Sequence[Predecessor]) -> None:
    """Note the deltas of a piece with the predecessors that they lead from."""
    for predecessor, made in zip(found, encoded.deltas, strict=True):
        if made is not None:
            delta, _ = made
            known = predecessor.deltas.get(delta.block, delta)
            predecessor.deltas[delta.block] = min(known, delta, key=lambda d: d.stored)


def _is_of(offer: Offer, bundle: Bundle) -> bool:
    manifest = bundle.manifest
    return (offer.name, offer.target) == (manifest.name, manifest.target)
