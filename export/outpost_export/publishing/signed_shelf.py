"""A repository's offers as publishing uses them: read, compared with, added to."""

from collections.abc import Callable

from outpost_runtime.errors import TrustError
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.offers import SignedOffer, verified_release
from outpost_runtime.update.release import Release

from outpost_export.publishing.releases import add_release, offers
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signers import Signers


class SignedShelf:
    """The offers of a repository, signed by its families.

    Args:
        repository: The repository.
        signers: Who signs what is added.
        clock: Gives the time in seconds since 1970.
    """

    def __init__(
        self, repository: Repository, signers: Signers, clock: Callable[[], float]
    ) -> None:
        self._repository = repository
        self._signers = signers
        self._clock = clock

    def offers(self) -> tuple[Offer, ...]:
        """Return every offer of the current metadata, verified.

        Raises:
            PublishError: There is no repository.
            TrustError: The metadata is not signed by the repository's own keys.
        """
        return tuple(signed.offer for signed in self._signed())

    def release(self, offer: Offer) -> Release:
        """Return the release that an offer names, verified.

        Raises:
            PublishError: Its file cannot be read.
            TrustError: Nothing like it is offered, or its file is another one.
        """
        for signed in self._signed():
            if signed.offer == offer:
                data = self._repository.read_file(signed.stored_path, signed.length)
                return verified_release(signed, data)
        raise TrustError(f"Release {offer.release} of '{offer.name}' is not offered so.")

    def files(self) -> tuple[str, ...]:
        """Return the paths in the repository of all releases that the metadata names."""
        return tuple(signed.stored_path for signed in self._signed())

    def add(self, family: str, offer: Offer, release: bytes) -> Offer:
        """Sign an offer with the name's next release counter, and store its release.

        Raises:
            PublishError: There is no such family, or a key is missing.
            TrustError: The release is not of the bundle that the offer names.
        """
        now = self._clock()
        return add_release(self._repository, family, offer, release, self._signers, now).offer

    def _signed(self) -> tuple[SignedOffer, ...]:
        return offers(self._repository.read(self._signers))
