"""``outpost-export keys grant``, ``revoke``, ``group`` and ``new-content-key``."""

import argparse
import sys
from pathlib import Path

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.update.device_identity import MAX_IDENTITY_BYTES, parse_identity

from outpost_export.errors import PublishError
from outpost_export.publishing.content_key_files import (
    Passphrases,
    content_keys,
    group_keys,
)
from outpost_export.publishing.grants import Granting, box_of
from outpost_export.publishing.key_files import Ask
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.roster import Recipient, Roster
from outpost_export.publishing.signers import KeyFolders

_GRANT_HELP = """\
Let a box or a group decrypt the models of families. Its identity is a file that 'outpost
provision' writes on the box. Keys are wrapped for it in the repository; nothing is encrypted
again. Without RECIPIENT, everybody's keys are written again, as into a new repository.
"""
_GROUP_HELP = """\
Make boxes members of a group, which is made if there is none of that name. Grant families to the
group by its name: one wrapped key then serves all its boxes.

A group's boxes hold its private key. --renew makes the group another one and wraps it for its
boxes, all but those that --without names. Those are shut out of what is published with content
keys that are made afterwards, with 'outpost-export keys new-content-key FAMILY'.
"""
_REVOKE_HELP = """\
Wrap no more keys of families for a box or group, and remove its wrapped keys from the repository.

This takes nothing away that the box has: it keeps its content keys, and can decrypt every block
that was encrypted with them, now or later, from wherever it gets it; mirrors and sticks may still
hold its wrapped keys. To shut it out of what is published from now on, renew the groups that it is
in ('outpost-export keys group NAME --renew --without DEVICE.json'), then make a new content key
with 'outpost-export keys new-content-key FAMILY' and publish the family's models again.
"""
_NEW_KEY_HELP = """\
Make a family a new content key and wrap it for everybody who is granted the family. What is
published from then on is encrypted with it, and boxes fetch those blocks anew, also unchanged
ones. What was published before stays readable with the keys before.
"""

Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def add_commands(commands: "Commands[argparse.ArgumentParser]", ask: Ask, ask_new: Ask) -> None:
    """Describe the commands of this file.

    Args:
        commands: Of ``outpost-export keys``.
        ask: Asks for a passphrase that exists.
        ask_new: Asks for a new one.
    """

    def add(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        parser = commands.add_parser(name, help=summary, description=text, formatter_class=raw)
        parser.add_argument(
            "--repo", type=Path, required=True, metavar="DIR", help="the repository"
        )
        parser.add_argument(
            "--keys", type=Path, default=Path("keys"), metavar="DIR",
            help="the publisher's keys folder (default: keys)",
        )  # fmt: skip
        parser.set_defaults(passphrases=Passphrases(ask, ask_new))
        return parser

    grant = add("grant", "let a box or a group decrypt families' models", _GRANT_HELP)
    _recipient(grant, "?")
    _families(grant)
    grant.set_defaults(run=_grant)
    revoke = add("revoke", "wrap no more keys for a box or a group", _REVOKE_HELP)
    _recipient(revoke, None)
    _families(revoke)
    revoke.set_defaults(run=_revoke)
    group = add("group", "make a group of boxes, or add boxes to it", _GROUP_HELP)
    group.add_argument("name", metavar="NAME", help="the group's name")
    group.add_argument("boxes", nargs="*", type=Path, metavar="DEVICE.json", help="its new boxes")
    group.add_argument("--renew", action="store_true", help="give the group another key pair")
    group.add_argument(
        "--without", action="append", type=Path, default=[], metavar="DEVICE.json",
        help="with --renew: a box that is out of the group then; may be given several times",
    )  # fmt: skip
    group.set_defaults(run=_group)
    renew = add("new-content-key", "encrypt a family with another key from now on", _NEW_KEY_HELP)
    renew.add_argument("family", metavar="FAMILY", help="the family's name")
    renew.set_defaults(run=_renew)


def _recipient(parser: argparse.ArgumentParser, count: str | None) -> None:
    parser.add_argument(
        "recipient",
        nargs=count,
        metavar="RECIPIENT",
        help="a box's identity, DEVICE.json, or the name of a group",
    )


def _families(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        action="append",
        metavar="NAME",
        help="a family; may be given several times (default: all that there are)",
    )


def _grant(parsed: argparse.Namespace) -> int:
    granting = _granting(parsed)
    if parsed.recipient is None:
        everybody = granting.roster.all()
        granting.write_again(everybody)
        _say(f"Wrote the keys of {len(everybody)} boxes and groups into {parsed.repo} again.")
        return 0
    recipient, families = _found(granting, parsed.recipient), _delegated(parsed, parsed.family)
    for family in families:
        if family not in granting.contents.names():
            _say(f"'{family}' is new; its first content key is made.")
    granted = granting.grant(recipient, families)
    _say(f"Granted {', '.join(families)} to {granted.label}.")
    return 0


def _revoke(parsed: argparse.Namespace) -> int:
    granting = _granting(parsed)
    recipient, families = _found(granting, parsed.recipient), _named(granting, parsed)
    left = granting.revoke(recipient, families)
    _say(f"No more keys of {', '.join(families)} are wrapped for {left.label}.")
    groups = [group for name in left.groups if (group := granting.roster.group(name))]
    through = [group.name for group in groups if set(group.families) & set(families)]
    for name in through:
        _say(f"It is in the group '{name}' and goes on getting them through it.")
    _say("It keeps the keys that it has. To shut it out of what is published from now on:")
    for name in through:
        _say(
            f"  outpost-export keys group {name} --renew --without {parsed.recipient} "
            f"--repo {parsed.repo}"
        )
    for family in families:
        _say(f"  outpost-export keys new-content-key {family} --repo {parsed.repo}")
    return 0


def _group(parsed: argparse.Namespace) -> int:
    boxes = [_read_box(path) for path in parsed.boxes]
    gone = [_read_box(path) for path in parsed.without]
    if gone and not parsed.renew:
        raise PublishError("A box leaves a group only with --renew: it holds the group's key.")
    granting = _granting(parsed)
    if parsed.renew:
        _say_renewed(granting.renew_group(parsed.name, gone), len(gone), parsed)
    group = granting.join(parsed.name, boxes)
    _say(f"{len(boxes)} boxes joined the {group.label} ({group.id[:12]}).")
    if not group.families:
        _say(f"It has no families yet: outpost-export keys grant {group.name} --repo …")
    return 0


def _say_renewed(group: Recipient, gone: int, parsed: argparse.Namespace) -> None:
    _say(f"The {group.label} has another key ({group.id[:12]}); {gone} boxes are out of it.")
    if gone:
        _say(
            "They keep the keys that they have. To shut them out of what is published from now on:"
        )
    for family in group.families if gone else ():
        _say(f"  outpost-export keys new-content-key {family} --repo {parsed.repo}")


def _renew(parsed: argparse.Namespace) -> int:
    granting = _granting(parsed)
    (family,) = _delegated(parsed, [parsed.family])
    secret = granting.renew(family)
    _say(
        f"'{secret.name}' has the content key {secret.key[:12]} from now on, its number "
        f"{secret.number}; publish its models again."
    )
    return 0


def _granting(parsed: argparse.Namespace) -> Granting:
    if not parsed.repo.is_dir():
        raise PublishError(
            f"There is no repository {parsed.repo}.", hint="'outpost-export keys init' makes one."
        )
    if parsed.keys.resolve().is_relative_to(parsed.repo.resolve()):
        raise PublishError(
            f"The keys folder {parsed.keys} is inside the repository, which everybody can read.",
            hint="Name another one with --keys.",
        )
    return Granting(
        repository=parsed.repo,
        contents=content_keys(parsed.keys, parsed.passphrases),
        groups=group_keys(parsed.keys, parsed.passphrases),
        roster=Roster(parsed.keys),
    )


def _found(granting: Granting, text: str) -> Recipient:
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return _read_box(path)
    group = granting.roster.group(text)
    if group is None:
        raise PublishError(
            f"There is no group '{text}'.",
            hint="Name the file of a box's identity, or make it with 'outpost-export keys group'.",
        )
    return group


def _delegated(parsed: argparse.Namespace, named: list[str] | None) -> list[str]:
    """Return the named families, all if none is, of those that the repository has."""
    signers = KeyFolders([parsed.keys], parsed.passphrases.existing)
    published = Repository(parsed.repo).read(signers)
    for family in named or ():
        published.check_family(family)
    families = named or list(published.families)
    if not families:
        raise PublishError(
            "No family is in this repository yet.", hint="'outpost-export keys family' makes one."
        )
    return families


def _named(granting: Granting, parsed: argparse.Namespace) -> list[str]:
    families: list[str] = parsed.family or granting.contents.names()
    if not families:
        raise PublishError(
            "No family has a content key yet.", hint="Name one with --family, or publish a model."
        )
    return families


def _read_box(path: Path) -> Recipient:
    try:
        with path.open("rb") as file:
            return box_of(parse_identity(file.read(MAX_IDENTITY_BYTES + 1)))
    except OSError as error:
        raise PublishError(f"{path} cannot be read: {error.strerror or error}.") from error
    except InvalidInputError as error:
        raise PublishError(
            f"{path} is no box's identity: {error.message}",
            hint="Bring the file that 'outpost provision' writes on the box.",
        ) from error


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
