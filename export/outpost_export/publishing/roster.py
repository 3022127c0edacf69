"""Who may have which family's content keys: the publisher's own list, in KEYS/recipients.

::

    KEYS/recipients/<recipient>.json   a box or a group: public key, families, groups it is in

It lies with the keys and not in the repository, because a new content key is wrapped for
everybody on it: whoever could write to it could have the key.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.update.content_keys import recipient_id
from outpost_runtime.update.secret_files import private_folder, read_secret, replace_secret

from outpost_export.errors import PublishError

RECIPIENT_FORMAT = "outpost-recipient/1"
_MAX_BYTES = 1 << 16
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipient:
    """A box or a group that content keys are wrapped for.

    Attributes:
        name: A box's id, or a group's name.
        is_group: Which of the two.
        families: Whose content keys it may have.
        groups: Names of the groups that a box is in, in the order in which it joined them.
    """

    name: str
    is_group: bool
    public_key: bytes
    families: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The recipient's id, which names the files of its wrapped keys."""
        return recipient_id(self.public_key)

    @property
    def label(self) -> str:
        """Who it is, for people."""
        return f"group '{self.name}'" if self.is_group else f"box {self.name[:12]}"


class Roster:
    """The list, one file for each recipient.

    Args:
        keys: The publisher's keys folder.
    """

    def __init__(self, keys: Path) -> None:
        self._folder = keys / "recipients"

    def all(self) -> list[Recipient]:
        """Return everybody.

        Raises:
            PublishError: A file is damaged.
        """
        return [_read(path) for path in sorted(self._folder.glob("*.json"))]

    def find(self, recipient: str) -> Recipient | None:
        """Return a recipient by its id, or None.

        Raises:
            PublishError: Its file is damaged.
        """
        path = self._folder / f"{recipient}.json"
        return _read(path) if path.exists() else None

    def group(self, name: str) -> Recipient | None:
        """Return a group by its name, or None.

        Raises:
            PublishError: A file is damaged.
        """
        return next((one for one in self.all() if one.is_group and one.name == name), None)

    def write(self, recipient: Recipient) -> None:
        """Put a recipient on the list, in the place of what it was there before.

        Raises:
            StoreError: The folder cannot be written.
        """
        document = {
            "format": RECIPIENT_FORMAT,
            "name": recipient.name,
            "is_group": recipient.is_group,
            "public_key": recipient.public_key.hex(),
            "families": list(recipient.families),
            "groups": list(recipient.groups),
        }
        with private_folder(self._folder):
            replace_secret(self._folder / f"{recipient.id}.json", canonical_json(document))

    def remove(self, recipient: str) -> None:
        """Take a recipient off the list by its id.

        Raises:
            StoreError: The folder cannot be written.
        """
        with private_folder(self._folder):
            (self._folder / f"{recipient}.json").unlink(missing_ok=True)


def _read(path: Path) -> Recipient:
    try:
        reader = parse_json_object(read_secret(path, limit=_MAX_BYTES), path=f"{path}:")
        recipient = _recipient(reader)
        reader.end()
    except InvalidInputError as error:
        raise PublishError(f"The list of recipients is damaged: {error.message}") from error
    if path.stem != recipient.id:
        raise PublishError(f"{path} is another recipient's file under this name.")
    return recipient


def _recipient(reader: Reader) -> Recipient:
    found, public_key = reader.string("format"), reader.string("public_key")
    if found != RECIPIENT_FORMAT:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{RECIPIENT_FORMAT}'")
    if not _PUBLIC_KEY.fullmatch(public_key):
        raise reader.fault("public_key", "must be 32 bytes in hexadecimal digits")
    return Recipient(
        name=reader.string("name"),
        is_group=reader.boolean("is_group"),
        public_key=bytes.fromhex(public_key),
        families=tuple(reader.list_of("families", str)),
        groups=tuple(reader.list_of("groups", str)),
    )
