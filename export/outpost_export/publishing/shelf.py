"""What publishing needs of a repository's signed metadata and of its keys: two small protocols."""

from collections.abc import Sequence
from typing import Protocol

from outpost_runtime.update.offer import Offer
from outpost_runtime.update.release import Release


class Shelf(Protocol):
    """The offers of a repository, signed by its families."""

    def offers(self) -> Sequence[Offer]:
        """Return every offer of the current metadata, verified.

        Raises:
            TrustError: The metadata is not signed by the repository's own keys.
        """

    def release(self, offer: Offer) -> Release:
        """Return the release that an offer names, verified.

        Raises:
            TrustError: It is missing, or another one.
        """

    def files(self) -> Sequence[str]:
        """Return the paths in the repository of all releases that the metadata names."""

    def add(self, family: str, offer: Offer, release: bytes) -> Offer:
        """Sign an offer with the name's next release counter, and store its release.

        Raises:
            PublishError: There is no such family, or a key is missing.
        """


class Blocks(Protocol):
    """A repository's blocks and deltas, as :class:`outpost_runtime.update.blocks.BlockStore`."""

    def has(self, block_id: str) -> bool:
        """Whether a block is there."""

    def read(self, block_id: str) -> bytes:
        """Return a block's stored bytes.

        Raises:
            StoreError: It is missing or damaged.
        """

    def stage(self, block_id: str, data: bytes) -> None:
        """Store a block that appears with the next :meth:`commit`."""

    def commit(self) -> None:
        """Make every staged block durable, and then visible."""
