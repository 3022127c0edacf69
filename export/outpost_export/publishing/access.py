"""How the publishing commands reach a repository and its keys: options in, objects out."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from outpost_export.publishing.content_key_files import (
    Passphrases,
    content_keys,
    current_content_key,
)
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.shelf import Shelf
from outpost_export.publishing.signed_shelf import SignedShelf
from outpost_export.publishing.signers import (
    KeyFolders,
    ask_new_passphrase,
    ask_passphrase,
)


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
        """Return the repository's signed offers.

        Raises:
            PublishError: There is no repository.
        """
        repository = self._repository_of(parsed)
        repository.check_exists()  # before its folder is made, for blocks
        return SignedShelf(repository, self._signers_of(parsed), time.time)

    def content_key(self, parsed: argparse.Namespace, family: str) -> bytes:
        """Return a family's current content key; its first one is made.

        Raises:
            PublishError: There is no such family, or the passphrase does not open its key.
            StoreError: The folder cannot be written.
        """
        self._repository_of(parsed).read(self._signers_of(parsed)).check_family(family)
        passphrases = Passphrases(ask_passphrase, ask_new_passphrase)
        files = content_keys(self._folders_of(parsed)[0], passphrases)
        return current_content_key(files, family).secret
