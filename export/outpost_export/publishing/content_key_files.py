"""The publisher's secret keys for content: of families and of groups of boxes, in files.

::

    KEYS/content/<family>-<number>.json   content keys; the highest number is the current one
    KEYS/groups/<group>-<number>.json     a group's private X25519 key

Each file is a sealed secret (``sealed_secrets.py``), all under one passphrase. A family's first
content key is made when it is needed. A new one is made to shut out a box from what is published
later; the earlier ones stay, for blocks that were encrypted with them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from outpost_runtime.update.content_keys import (
    content_key_id,
    new_content_key,
    public_bytes,
    recipient_id,
)
from outpost_runtime.update.secret_files import create_secret, private_folder, read_secret

from outpost_export.errors import PublishError
from outpost_export.publishing.key_files import SHORTEST_PASSPHRASE, Ask
from outpost_export.publishing.sealed_secrets import (
    COST,
    MAX_SEALED_BYTES,
    encode_sealed_secret,
    open_secret,
    parse_sealed_secret,
    seal_secret,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE = re.compile(r"(.+)-([0-9]{4})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Secret:
    """An opened secret; it shows nothing of itself."""

    name: str
    number: int
    key: str
    secret: bytes = field(repr=False)


class Passphrases:
    """The one passphrase of a keys folder, asked for once.

    Args:
        ask: Asks for the one that there is.
        ask_new: Asks for the one that shall be.
    """

    def __init__(self, ask: Ask, ask_new: Ask) -> None:
        self._ask = ask
        self._ask_new = ask_new
        self._known: str | None = None

    def existing(self, what: str) -> str:
        """Return the passphrase of secrets that are there."""
        if self._known is None:
            self._known = self._ask(what)
        return self._known

    def new(self, what: str) -> str:
        """Return the passphrase of a folder's first secret.

        Raises:
            PublishError: It is too short.
        """
        if self._known is None:
            given = self._ask_new(what)
            if len(given) < SHORTEST_PASSPHRASE:
                raise PublishError(
                    f"A passphrase of {len(given)} characters is too short.",
                    hint=f"Use at least {SHORTEST_PASSPHRASE}; six random words are good.",
                )
            self._known = given
        return self._known


class SecretFiles:
    """Numbered secrets by name, all of one kind, in a folder.

    Args:
        folder: Where they are; made when the first one is written.
        kind: What they are, such as ``content``.
        identify: Returns a secret's identity.
        cost: Of guessing the passphrase: scrypt's N.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        identify: Callable[[bytes], str],
        passphrases: Passphrases,
        *,
        cost: int = COST,
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._identify = identify
        self._passphrases = passphrases
        self._cost = cost
        self._open: dict[tuple[str, int], Secret] = {}  # each guess at a passphrase is slow

    def names(self) -> list[str]:
        """Return every name that has a secret."""
        return sorted(self._numbers())

    def all(self, name: str) -> list[Secret]:
        """Open every secret of a name, the newest last.

        Raises:
            PublishError: The passphrase does not open one, or its file is damaged.
        """
        return [self._opened(name, number) for number in self._numbers().get(name, [])]

    def newest(self, name: str) -> Secret | None:
        """Open the newest secret of a name, or return None if it has none.

        Raises:
            PublishError: The passphrase does not open it, or its file is damaged.
        """
        numbers = self._numbers().get(name)
        return self._opened(name, numbers[-1]) if numbers else None

    def add(self, name: str, secret: bytes) -> Secret:
        """Write one more secret of a name; from then on it is the newest.

        Raises:
            PublishError: The name is not allowed, or the passphrase is not that of the others.
            StoreError: The folder cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise PublishError(
                f"'{name}' is no name for keys.",
                hint="Use lower-case letters, digits, '.', '_' and '-'.",
            )
        with private_folder(self._folder):
            passphrase = self._passphrase()
            number = max(self._numbers().get(name, []), default=0) + 1
            key = self._identify(secret)
            sealed = seal_secret(
                secret,
                passphrase,
                kind=self._kind,
                name=name,
                number=number,
                key=key,
                cost=self._cost,
            )
            create_secret(self._path(name, number), encode_sealed_secret(sealed))
        self._open[name, number] = Secret(name=name, number=number, key=key, secret=secret)
        return self._open[name, number]

    def _passphrase(self) -> str:
        for name, numbers in self._numbers().items():
            self._opened(name, numbers[-1])  # one passphrase for all, or none is written
            return self._passphrases.existing(str(self._folder))
        return self._passphrases.new(str(self._folder))

    def _opened(self, name: str, number: int) -> Secret:
        if (name, number) not in self._open:
            self._open[name, number] = self._read(name, number)
        return self._open[name, number]

    def _read(self, name: str, number: int) -> Secret:
        path = self._path(name, number)
        document = parse_sealed_secret(read_secret(path, limit=MAX_SEALED_BYTES), str(path))
        secret = open_secret(document, self._passphrases.existing(str(self._folder)))
        if (document.kind, document.name, document.number) != (self._kind, name, number):
            raise PublishError(f"{path} is another key's file under this name.")
        return Secret(name=name, number=number, key=self._identify(secret), secret=secret)

    def _numbers(self) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for path in sorted(self._folder.glob("*.json")):
            if match := _FILE.fullmatch(path.name):
                numbers.setdefault(match[1], []).append(int(match[2]))
        return numbers

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:04}.json"


def content_keys(keys: Path, passphrases: Passphrases, *, cost: int = COST) -> SecretFiles:
    """Return the content keys of a publisher's keys folder, by family."""
    return SecretFiles(keys / "content", "content", content_key_id, passphrases, cost=cost)


def group_keys(keys: Path, passphrases: Passphrases, *, cost: int = COST) -> SecretFiles:
    """Return the private keys of a publisher's groups, by name."""
    return SecretFiles(keys / "groups", "group", _group_id, passphrases, cost=cost)


def _group_id(secret: bytes) -> str:
    return recipient_id(public_bytes(X25519PrivateKey.from_private_bytes(secret)))


def current_content_key(files: SecretFiles, family: str) -> Secret:
    """Return what a family's blocks are encrypted with now; its first key is made if need be.

    Raises:
        PublishError: The passphrase does not open it, or the name is not allowed.
        StoreError: The folder cannot be written.
    """
    return files.newest(family) or files.add(family, new_content_key())
