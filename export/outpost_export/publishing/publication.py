"""What is published, where, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from outpost_runtime.update.offer import Offer, Rollout

from outpost_export.publishing.shelf import Blocks, Shelf


@dataclass(frozen=True, kw_only=True, slots=True)
class Warehouse:
    """Where a bundle is published to.

    Attributes:
        folder: The repository.
        blocks: Its blocks and deltas.
        shelf: Its signed offers.
        content_key: Key of the family that the bundle goes to.
    """

    folder: Path
    blocks: Blocks
    shelf: Shelf
    content_key: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What shall be published, and for whom.

    Attributes:
        devices: Device models; empty for every model.
        predecessors: From how many earlier bundles of this name and target deltas shall lead.
        dry_run: Work everything out, and write nothing.
    """

    bundle: Path
    family: str
    devices: tuple[str, ...] = ()
    minimum_runtime: str = "0.1.0"
    rollout: Rollout = field(default_factory=Rollout)
    predecessors: int = 2
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """What an update from an earlier release moves.

    Attributes:
        offer: The earlier one.
        blocks: Blocks of the new one that a box does not have then.
        full: Stored bytes of these blocks.
        moved: Stored bytes where each comes the cheaper way, and of the delta index.
        deltas: How many come as deltas.
    """

    offer: Offer
    blocks: int
    full: int
    moved: int
    deltas: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What came of it.

    Attributes:
        offer: As it was signed; ``release`` is 0 after a dry run.
        is_new: False if just this was offered already.
        blocks: Different blocks of the bundle.
        stored: Their stored bytes.
        new_blocks: Those that were not in the repository.
        new_deltas: Deltas that were not.
        new_bytes: Bytes of both.
        ways: What updates from earlier releases move, newest first.
    """

    offer: Offer
    is_new: bool
    blocks: int
    stored: int
    new_blocks: int
    new_deltas: int
    new_bytes: int
    ways: tuple[Way, ...]
