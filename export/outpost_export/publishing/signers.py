"""Signers: who signs a repository's metadata, and by which root the repository is judged.

:class:`Signers` is the contract. :class:`KeyFolders` keeps it with key files. Keys in a
PKCS#11 token, a TPM or a signing service keep it with another class that answers
:meth:`Signers.signer` with securesystemslib's signer for them; nothing else has to change.

The root is with the keys and not taken from the repository, since whoever can write there
could put a root of his own in its place, and have its successor signed with genuine keys.
"""

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from outpost_runtime.bundle import write_durably
from outpost_runtime.update.trust import MAX_ROOT_BYTES, read_root
from securesystemslib.signer import (  # type: ignore[attr-defined]  # it marks no name as exported
    CryptoSigner,
    Key,
    Signer,
)

from outpost_export.errors import PublishError
from outpost_export.publishing.key_files import (
    Ask,
    read_public_key,
    read_signer,
    read_small_file,
)

ROOT = "root.json"
PASSPHRASE_VARIABLE = "OUTPOST_PASSPHRASE"  # noqa: S105 - its name, not its value


class Signers(Protocol):
    """Whoever can sign with some of a repository's keys."""

    def signer(self, key: Key) -> Signer | None:
        """Return who signs with a key, or None if that key is not here.

        Raises:
            PublishError: The key is here and cannot be used.
        """

    def root(self) -> bytes:
        """Return the newest root that was kept.

        Raises:
            PublishError: None was.
        """

    def keep_root(self, root: bytes) -> None:
        """Remember a root that was verified, or made.

        Raises:
            PublishError: It cannot be written.
        """


class KeyFolders:
    """Key files in one or several folders; each is opened when it has to sign, once.

    The root is ``root.json`` beside them; the first folder gets the newest one.

    Args:
        folders: Where the files are: a disk, and the sticks of those who hold root's keys.
        ask: Gives passphrases; what opened one file is tried on the next.
    """

    def __init__(self, folders: Sequence[Path], ask: Ask) -> None:
        self._folders = folders
        self._ask = ask
        self._open: dict[str, CryptoSigner] = {}
        self._passphrases: list[str] = []

    def signer(self, key: Key) -> Signer | None:
        """Return who signs with a key, or None if its file is in none of the folders.

        Raises:
            PublishError: The file is here, and no passphrase opens it.
        """
        path = self._path(key.keyid)
        if key.keyid not in self._open and path is not None:
            self._open[key.keyid] = self._opened(path, key)
        return self._open.get(key.keyid)

    def root(self) -> bytes:
        """Return the newest root that is in one of the folders.

        Raises:
            PublishError: There is none, or a damaged one.
        """
        found = [path for folder in self._folders if (path := folder / ROOT).exists()]
        if not found:
            raise PublishError(
                f"{self._folders[0] / ROOT} is missing: the root to judge the repository by.",
                hint="Copy the repository's metadata/1.root.json there, after comparing its "
                "SHA-256 with the one of the key ceremony.",
            )
        roots = [read_small_file(path, MAX_ROOT_BYTES) for path in found]
        return max(roots, key=lambda root: read_root(root).version)

    def keep_root(self, root: bytes) -> None:
        """Write the root into the first folder, if it is not there.

        Raises:
            PublishError: The folder cannot be written.
        """
        path = self._folders[0] / ROOT
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != root:
                write_durably(path, root)
        except OSError as error:
            raise PublishError(f"{path} cannot be written: {error.strerror or error}.") from error

    def _path(self, keyid: str) -> Path | None:
        for folder in self._folders:
            for public in sorted(folder.glob(f"*-{keyid[:8]}.pub")):
                private = public.with_suffix(".pem")
                if private.exists() and read_public_key(public).keyid == keyid:
                    return private
        return None

    def _opened(self, path: Path, key: Key) -> CryptoSigner:
        for passphrase in self._passphrases:
            try:
                return read_signer(path, key, passphrase)
            except PublishError:
                continue  # another key, another passphrase
        passphrase = self._ask(str(path))
        signer = read_signer(path, key, passphrase)
        self._passphrases.append(passphrase)
        return signer


def ask_passphrase(what: str) -> str:
    """Take a passphrase from the environment, else from the person at the terminal.

    Raises:
        PublishError: There is neither.
    """
    return _from_environment(what) or getpass.getpass(f"Passphrase of {what}: ")


def ask_new_passphrase(what: str, prompt: Callable[[str], str] = getpass.getpass) -> str:
    """The same for a new key: a person has to type it twice.

    Raises:
        PublishError: There is neither, or the two differ.
    """
    given = _from_environment(what)
    if given is not None:
        return given
    first = prompt(f"New passphrase for {what}: ")
    if prompt("The same again: ") != first:
        raise PublishError("The two passphrases differ.", hint="Nothing was made; try again.")
    return first


def _from_environment(what: str) -> str | None:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if not given and not sys.stdin.isatty():
        raise PublishError(
            f"{what} needs a passphrase, and nobody is here to type it.",
            hint=f"Run the command in a terminal, or set {PASSPHRASE_VARIABLE}.",
        )
    return given or None
