"""What a box has in stock: which releases it keeps, and what others would take of its disk."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace

from outpost_runtime.errors import BundleError, FetchError, NotFoundError, StoreError, TrustError
from outpost_runtime.store import SPARE_BYTES
from outpost_runtime.update.box import Box
from outpost_runtime.update.delta_index import DeltaIndex
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.planning import Holdings, Plan, plan_update, useful_references
from outpost_runtime.update.release import DeltaReference, Release
from outpost_runtime.update.slots import Slot
from outpost_runtime.update.transfer import read_delta_index

_LOG = logging.getLogger(__name__)


def plan_for(
    box: Box, fetcher: Fetcher, releases: Sequence[Release], waiting: Sequence[Release] = ()
) -> Plan:
    """Plan what releases take: from the source, of what is here, and of the disk.

    Args:
        waiting: Releases that come another time; what is here of them stays if there is room.

    Raises:
        StoreError: They do not fit.
    """
    kept, all_known = kept_releases(box)
    here = {release.bundle for release in kept}
    references = [ref for release in releases for ref in useful_references(release, here)]
    indexes = [index for ref in references if (index := _delta_index(fetcher, ref)) is not None]
    blocks = box.store.blocks.sizes()
    if not all_known:  # what an unreadable release needs is unknown: nothing is collected
        named = {block.id for release in (*kept, *releases) for block in release.blocks()}
        named |= {delta.source for index in indexes for delta in index.deltas}
        blocks = {block: size for block, size in blocks.items() if block in named}
        kept = [*kept, *releases]
    later = {block.id for release in waiting for block in release.blocks()}
    later -= {block.id for release in releases for block in release.blocks()}
    partials = box.store.blocks.partials()
    holdings = Holdings(
        blocks=blocks,
        partials={block: size for block, size in partials.items() if block not in later},
        free=shutil.disk_usage(box.store.folder).free,
        spare=SPARE_BYTES,
    )
    try:
        return plan_update(releases, indexes, holdings, [*kept, *waiting])
    except StoreError:
        return plan_update(releases, indexes, holdings, kept)


def kept_releases(box: Box) -> tuple[list[Release], bool]:
    """Return the releases whose blocks have to stay, and whether these are all of them."""
    store = box.store
    named = {bundle for slot in store.slots().values() for bundle in slot.names()}
    if store.has_damaged_slots():
        named |= store.releases.bundles()
    kept, all_known = [], True
    for bundle in sorted(named):
        try:
            if store.releases.has(bundle):
                kept.append(store.releases.read(bundle))
        except BundleError as error:
            _LOG.error("%s", error)
            all_known = False
    return kept, all_known


def as_here(box: Box, slots: dict[str, Slot]) -> dict[str, Slot]:
    """Return the slots, without active bundles whose releases cannot be read: they come again."""

    def seen(slot: Slot) -> Slot:
        try:
            if slot.active is not None and box.store.releases.has(slot.active):
                box.store.releases.read(slot.active)
        except BundleError:
            return replace(slot, active=None)
        return slot

    return {name: seen(slot) for name, slot in slots.items()}


def whole_release(box: Box, bundle: str) -> Release | None:
    """Return the release under which a bundle is here, whole and with its key; reads all of it.

    Published again, under a new content key say, the same bundle has other blocks: what is whole
    here is not given up for them. None where it is not.
    """
    store = box.store
    try:
        release = store.releases.read(bundle)
        box.keys.secret(release.key)
    except (BundleError, NotFoundError):
        return None
    blocks = {block.id for block in release.blocks()}
    is_whole = all(map(store.blocks.has, blocks)) and not store.blocks.damaged(blocks)
    return release if is_whole else None


def throw_away_damaged(box: Box, releases: Sequence[Release]) -> bool:
    """Remove blocks that are not what their names say; says whether there were any."""
    blocks = box.store.blocks
    damaged = blocks.damaged({block.id for release in releases for block in release.blocks()})
    if damaged:
        _LOG.warning("%d blocks on this disk are damaged; they are fetched again", len(damaged))
        blocks.remove(damaged)
    return bool(damaged)


def _delta_index(fetcher: Fetcher, reference: DeltaReference) -> DeltaIndex | None:
    """Return which deltas there are; without them, blocks come whole."""
    try:
        return read_delta_index(fetcher, reference)
    except (NotFoundError, FetchError, TrustError) as error:
        _LOG.warning("deltas are not used: %s", error)
        return None
