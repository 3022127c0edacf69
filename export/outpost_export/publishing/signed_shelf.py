"""A repository's signed offers as :mod:`publish` needs them, and where keys are asked for."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from outpost_runtime.update.fetch import read_whole
from outpost_runtime.update.fetch.folder import FolderFetcher
from outpost_runtime.update.offers import SignedOffer, verified_release
from outpost_runtime.update.release import Offer, Release

from outpost_export.publishing.content_key_files import (
    Passphrases,
    content_keys,
    current_content_key,
)
from outpost_export.publishing.releases import add_release, offers
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.shelf import Shelf
from outpost_export.publishing.signers import (
    KeyFolders,
    Signers,
    ask_new_passphrase,
    ask_passphrase,
)


class SignedShelf:
    """The offers of one repository; see :class:`Shelf`.

    Args:
        folder: The repository's.
    """

    def __init__(self, folder: Path, repository: Repository, signers: Signers) -> None:
        self._fetcher = FolderFetcher(folder)
        self._repository = repository
        self._signers = signers

    def offers(self) -> Sequence[Offer]:
        """See :class:`Shelf`."""
        return [signed.offer for signed in self._signed()]

    def release(self, offer: Offer) -> Release:
        """See :class:`Shelf`."""
        signed = next(signed for signed in self._signed() if signed.offer == offer)
        data = read_whole(self._fetcher, signed.stored_path, limit=signed.length)
        return verified_release(signed, data)

    def files(self) -> Sequence[str]:
        """See :class:`Shelf`."""
        return [signed.stored_path for signed in self._signed()]

    def add(self, family: str, offer: Offer, release: bytes) -> Offer:
        """See :class:`Shelf`."""
        now = time.time()
        return add_release(self._repository, family, offer, release, self._signers, now).offer

    def _signed(self) -> tuple[SignedOffer, ...]:
        return offers(self._repository.read())


class RepositoryAccess:
    """How commands reach repository and keys: options in, shelf and content key out.

    Args:
        add_arguments: Adds the options of every command that signs.
        repository_of: The repository that they name.
        signers_of: The key folders that they name.
        folders_of: The same, as folders; the first has content keys.
    """

    def __init__(
        self,
        add_arguments: Callable[[argparse.ArgumentParser], None],
        repository_of: Callable[[argparse.Namespace], Repository],
        signers_of: Callable[[argparse.Namespace], KeyFolders],
        folders_of: Callable[[argparse.Namespace], Sequence[Path]],
    ) -> None:
        self.add_arguments = add_arguments
        self._repository_of = repository_of
        self._signers_of = signers_of
        self._folders_of = folders_of

    def shelf(self, parsed: argparse.Namespace) -> Shelf:
        """Return the repository's signed offers."""
        return SignedShelf(parsed.repo, self._repository_of(parsed), self._signers_of(parsed))

    def content_key(self, parsed: argparse.Namespace, family: str) -> bytes:
        """Return a family's current content key; its first one is made."""
        passphrases = Passphrases(ask_passphrase, ask_new_passphrase)
        files = content_keys(self._folders_of(parsed)[0], passphrases)
        return current_content_key(files, family).secret
