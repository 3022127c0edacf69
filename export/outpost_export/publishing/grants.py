"""Granting content keys: wrapped in a repository for boxes and groups, nothing encrypted again.

What is granted is written to the list of recipients first and to the repository then, so that a
grant that was cut off is finished by the same command. A new content key is wrapped for everybody
first and becomes the current one then.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from outpost_runtime.bundle import sync_folder, write_durably
from outpost_runtime.update.content_keys import (
    MAX_GROUPS,
    WrappedKey,
    encode_wrapped_key,
    group_key_path,
    new_content_key,
    public_bytes,
    wrap_content_key,
    wrap_group_key,
    wrapped_key_path,
)
from outpost_runtime.update.device_identity import DeviceIdentity

from outpost_export.errors import PublishError
from outpost_export.publishing.content_key_files import Secret, SecretFiles, current_content_key
from outpost_export.publishing.roster import Recipient, Roster


@dataclass(frozen=True, kw_only=True, slots=True)
class Granting:
    """A repository, and what its publisher grants from."""

    repository: Path
    contents: SecretFiles
    groups: SecretFiles
    roster: Roster

    def grant(self, recipient: Recipient, families: Iterable[str]) -> Recipient:
        """Let a recipient have the content keys of families, earlier ones too.

        Returns:
            The recipient as it is on the list from now on.

        Raises:
            PublishError: A key file cannot be opened, or the repository cannot be written.
            StoreError: The keys folder cannot be written.
        """
        known = self.roster.find(recipient.id) or recipient
        granted = replace(known, families=_with(known.families, families))
        self.roster.write(granted)
        for family in families:
            current_content_key(self.contents, family)
        self.write_again([granted])
        return granted

    def join(self, group: str, boxes: Sequence[Recipient]) -> Recipient:
        """Make boxes members of a group, which is made if there is none of that name.

        Returns:
            The group.

        Raises:
            PublishError: A box is in too many groups, a key file cannot be opened, or the
                repository cannot be written.
            StoreError: The keys folder cannot be written.
        """
        made = self._group(group)
        for box in boxes:
            known = self.roster.find(box.id) or box
            joined = replace(known, groups=_with(known.groups, [group]))
            if len(joined.groups) > MAX_GROUPS:
                raise PublishError(f"{box.label} is in {MAX_GROUPS} groups already.")
            self.roster.write(joined)
            self.write_again([joined])
        return made

    def renew_group(self, group: str, without: Sequence[Recipient] = ()) -> Recipient:
        """Give a group another key pair, for all its boxes but some, who are out of it then.

        1. Make the pair, and wrap the families' content keys for it.
        2. Wrap its private key for the boxes that stay.
        3. Take the pair before off the list, and its wrapped keys out of the repository.

        The boxes that are out keep what they have; :meth:`renew` shuts them out of what comes.
        Cut off, it is done anew by the same call.

        Returns:
            The group, under its new key.

        Raises:
            PublishError: There is no such group, a box is not in it, a key file cannot be opened,
                or the repository cannot be written.
            StoreError: The keys folder cannot be written.
        """
        everybody, gone = self.roster.all(), {box.id for box in without}
        before = [one for one in everybody if one.is_group and one.name == group]
        members = [one for one in everybody if group in one.groups]
        if not before:
            raise PublishError(f"There is no group '{group}'.")
        for box in without:
            if box.id not in {one.id for one in members} and self.roster.find(box.id) is None:
                raise PublishError(f"The {box.label} is not in the group '{group}'.")
        families = tuple(dict.fromkeys(name for one in before for name in one.families))
        made = self._listed(self._new_pair(group), families)  # 1
        self.write_again([made])
        for box in members:  # 2
            if box.id in gone:
                self._leave(box, group)
            else:
                self.write_again([box])
        for one in before:  # 3
            self.revoke(one, families)
            self.roster.remove(one.id)
        return made

    def revoke(self, recipient: Recipient, families: Iterable[str]) -> Recipient:
        """Take a recipient off the list of families, and its wrapped keys out of the repository.

        It keeps what it has fetched, and every release that is encrypted with a key that it has:
        only :meth:`renew` and a new publication shut it out, from then on.

        Raises:
            PublishError: It is not on the list, or the repository cannot be written.
        """
        known = self.roster.find(recipient.id)
        if known is None:
            raise PublishError(f"{recipient.label} has been granted nothing.")
        left = replace(known, families=tuple(f for f in known.families if f not in families))
        self.roster.write(left)
        for family in families:
            for key in self.contents.all(family):
                _remove(self.repository / wrapped_key_path(key.key, known.id))
        return left

    def renew(self, family: str) -> Secret:
        """Make a family a new content key, for everybody who is on its list.

        Returns:
            The key that blocks are encrypted with from now on.

        Raises:
            PublishError: A key file cannot be opened, or the repository cannot be written.
            StoreError: The keys folder cannot be written.
        """
        self.contents.newest(family)  # a wrong passphrase is found before anything is written
        secret = new_content_key()
        for recipient in self.roster.all():
            if family in recipient.families:
                self._write(wrap_content_key(secret, recipient.public_key))
        return self.contents.add(family, secret)

    def write_again(self, recipients: Iterable[Recipient]) -> None:
        """Write every wrapped key of recipients into the repository, as the list has them.

        Raises:
            PublishError: A key file cannot be opened, or the repository cannot be written.
        """
        opened: dict[str, list[Secret]] = {}
        for recipient in recipients:
            for family in recipient.families:
                if family not in opened:
                    opened[family] = self.contents.all(family)
                for key in opened[family]:
                    self._write(wrap_content_key(key.secret, recipient.public_key))
            for number, name in enumerate(recipient.groups, start=1):
                wrapped = wrap_group_key(self._private_key(name), recipient.public_key)
                self._write(wrapped, group_key_path(recipient.id, number))

    def _group(self, name: str) -> Recipient:
        known = self.roster.group(name)
        if known is not None:
            return known
        found = self.groups.newest(name)  # of a cut before
        return self._listed(found or self._new_pair(name))

    def _new_pair(self, group: str) -> Secret:
        return self.groups.add(group, X25519PrivateKey.generate().private_bytes_raw())

    def _listed(self, pair: Secret, families: tuple[str, ...] = ()) -> Recipient:
        public_key = public_bytes(X25519PrivateKey.from_private_bytes(pair.secret))
        made = Recipient(name=pair.name, is_group=True, public_key=public_key, families=families)
        self.roster.write(made)
        return made

    def _leave(self, box: Recipient, group: str) -> None:
        left = replace(box, groups=tuple(name for name in box.groups if name != group))
        self.roster.write(left)
        self.write_again([left])  # groups are numbered without a gap
        _remove(self.repository / group_key_path(box.id, len(box.groups)))

    def _private_key(self, group: str) -> X25519PrivateKey:
        secret = self.groups.newest(group)
        if secret is None:
            raise PublishError(f"The key file of the group '{group}' is missing.")
        return X25519PrivateKey.from_private_bytes(secret.secret)

    def _write(self, wrapped: WrappedKey, path: str | None = None) -> None:
        place = self.repository / (path or wrapped_key_path(wrapped.key, wrapped.recipient))
        try:
            if not place.parent.is_dir():
                place.parent.mkdir(parents=True)
                sync_folder(place.parent.parent)
            write_durably(place, encode_wrapped_key(wrapped))
        except OSError as error:
            raise PublishError(f"{place} cannot be written: {error.strerror or error}.") from error


def box_of(identity: DeviceIdentity) -> Recipient:
    """Return the recipient that a box is."""
    return Recipient(name=identity.id, is_group=False, public_key=identity.encryption_key)


def _with(names: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*names, *more)))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PublishError(f"{path} cannot be removed: {error.strerror or error}.") from error
