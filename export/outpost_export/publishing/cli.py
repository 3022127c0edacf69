"""The commands of ``outpost-export`` that work on a repository: keys, refresh, rollout."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from outpost_runtime.update.metadata import Key
from outpost_runtime.update.offer import Rollout

from outpost_export.errors import PublishError
from outpost_export.publishing import ceremony, granting_commands, publish_cli, system_cli
from outpost_export.publishing.access import RepositoryAccess
from outpost_export.publishing.inventory import inventory
from outpost_export.publishing.key_files import make_key, read_public_key
from outpost_export.publishing.releases import RolloutChange, set_rollout
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signers import (
    PASSPHRASE_VARIABLE,
    KeyFolders,
    ask_new_passphrase,
    ask_passphrase,
)
from outpost_export.publishing.signing import DAY, LONGEST_PAUSE, Lifetimes

_WARN = 60 * DAY
_KEYS_HELP = f"""\
The keys of a repository: who may sign what. See docs/key-ceremony.md.

Private keys are files that a passphrase opens. It is asked for, or taken from the
environment variable {PASSPHRASE_VARIABLE}.
"""
_ROLE_HELP = "root, targets, online (snapshot and timestamp) or family-NAME"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to those of ``outpost-export``."""
    raw = argparse.RawDescriptionHelpFormatter
    keys = commands.add_parser(
        "keys", help="make, replace and show a repository's keys", description=_KEYS_HELP,
        formatter_class=raw,
    )  # fmt: skip
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    _add_keys(actions)
    granting_commands.add_commands(actions, ask_passphrase, ask_new_passphrase)
    access = RepositoryAccess(add_repository_arguments, repository_of, signers_of, _folders)
    publish_cli.add_commands(commands, access)
    system_cli.add_commands(commands)
    refresh = commands.add_parser("refresh", help="sign a repository's timestamps again")
    add_repository_arguments(refresh)
    refresh.set_defaults(run=_refresh)
    rollout = commands.add_parser("rollout", help="change for whom a release is, or halt it")
    _add_rollout(rollout)


def add_repository_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that signs: where the repository and the keys are."""
    parser.add_argument("--repo", required=True, type=Path, metavar="DIR", help="the repository")
    parser.add_argument(
        "--keys",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder of key files; may be given several times (default: keys)",
    )
    life = Lifetimes()
    for option, default, what in (
        ("--days", life.timestamp // DAY, "the timestamp"),
        ("--stick-days", life.stick // DAY, "the timestamp of sticks"),
    ):
        parser.add_argument(
            option, type=_days, default=default, metavar="N",
            help=f"days until {what} expires (default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--clock-is-right", action="store_true",
        help=f"sign although the last publication was more than {LONGEST_PAUSE // DAY} days ago",
    )  # fmt: skip


def repository_of(parsed: argparse.Namespace) -> Repository:
    """Return the repository that was named."""
    lifetimes = Lifetimes(timestamp=parsed.days * DAY, stick=parsed.stick_days * DAY)
    pause = math.inf if parsed.clock_is_right else LONGEST_PAUSE
    return Repository(parsed.repo, lifetimes, longest_pause=pause)


def signers_of(parsed: argparse.Namespace) -> KeyFolders:
    """Return the key folders that were named."""
    return KeyFolders(_folders(parsed), ask_passphrase)


def _add_keys(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    init = actions.add_parser("init", help="make a repository and its first keys")
    init.add_argument("--root-keys", type=int, default=3, metavar="N", help="root keys (default 3)")
    init.add_argument(
        "--root-threshold", type=int, default=2, metavar="N", help="that must sign (default: 2)"
    )
    init.add_argument(
        "--root-dir", action="append", type=Path, metavar="DIR",
        help="where root keys go, in turn; may be given several times (default: --keys)",
    )  # fmt: skip
    init.add_argument(
        "--family", action="append", default=[], metavar="NAME", help="a family of models"
    )
    _signs(init, _init)
    create = actions.add_parser("create", help="make a key for a role of a repository elsewhere")
    create.add_argument("role", metavar="ROLE", help="the file's name, such as family-press")
    create.add_argument("--keys", type=Path, default=Path("keys"), metavar="DIR", help="where to")
    create.set_defaults(run=_create)
    family = actions.add_parser("family", help="delegate one more family of models")
    _with_public_key(family)
    family.add_argument("name", metavar="NAME")
    _signs(family, _family)
    withdraw = actions.add_parser("withdraw", help="delegate a family no more")
    withdraw.add_argument("name", metavar="NAME")
    _signs(withdraw, _withdraw)
    rotate = actions.add_parser("rotate", help="replace a key by a new one")
    rotate.add_argument("role", metavar="ROLE", help=_ROLE_HELP)
    rotate.add_argument("--replace", metavar="ID", help="beginning of the id of the key that goes")
    _with_public_key(rotate)
    _signs(rotate, _rotate)
    renew = actions.add_parser("renew", help="sign a role's metadata again before it expires")
    renew.add_argument("role", metavar="ROLE", help=_ROLE_HELP)
    _signs(renew, _renew)
    show = actions.add_parser("show", help="show roles, keys and expiry")
    _signs(show, _show)


def _add_rollout(rollout: argparse.ArgumentParser) -> None:
    rollout.add_argument("name", metavar="NAME", help="the model's name")
    rollout.add_argument(
        "--release", type=int, metavar="N", help="which release (default: the newest version's)"
    )
    share = rollout.add_mutually_exclusive_group()
    share.add_argument("--percent", type=_percent, metavar="N", help="share of the devices")
    share.add_argument("--halt", action="store_const", dest="percent", const=0, help="percent 0")
    rollout.add_argument(
        "--ring", action="append", metavar="RING", help="only this ring; may be given several times"
    )
    rollout.add_argument(
        "--not-before", type=_moment, metavar="TIME", help="such as 2026-12-01T22:00Z"
    )
    rollout.add_argument("--not-after", type=_moment, metavar="TIME", help="begin no install later")
    _signs(rollout, _rollout)


def _signs(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    add_repository_arguments(parser)
    parser.set_defaults(run=run)


def _with_public_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--public-key", type=Path, metavar="FILE", help="a key made elsewhere (default: make one)"
    )


def _init(parsed: argparse.Namespace) -> int:
    folders, root_folders = _folders(parsed), parsed.root_dir or _folders(parsed)
    repository = repository_of(parsed)
    ceremony.check_new(repository, parsed.root_keys, parsed.root_threshold, parsed.family)
    passphrases: dict[Path, str] = {}

    def make(role: str, folder: Path) -> Key:
        if folder not in passphrases:
            passphrases[folder] = ask_new_passphrase(str(folder))
        return make_key(folder, role, passphrases[folder])

    keys = ceremony.FirstKeys(
        root=[make("root", root_folders[n % len(root_folders)]) for n in range(parsed.root_keys)],
        root_threshold=parsed.root_threshold,
        targets=make("targets", folders[0]),
        online=make(ceremony.ONLINE, folders[0]),
        families={name: make(f"family-{name}", folders[0]) for name in parsed.family},
    )
    signers = KeyFolders(list(passphrases), lambda path: passphrases[Path(path).parent])
    ceremony.create(repository, keys, signers, time.time())
    for folder in passphrases:  # every holder of keys judges the repository by this root
        KeyFolders([folder], ask_passphrase).keep_root(signers.root())
    _say(f"{parsed.repo} is a repository. Provision boxes with {parsed.repo}/metadata/1.root.json.")
    _say("Take the root keys away from this machine now; docs/key-ceremony.md says how.")
    return 0


def _create(parsed: argparse.Namespace) -> int:
    ceremony.check_role(parsed.role)
    make_key(parsed.keys, parsed.role, ask_new_passphrase(str(parsed.keys)))
    _say(f"Hand the .pub file in {parsed.keys} to whoever holds the targets key.")
    return 0


def _family(parsed: argparse.Namespace) -> int:
    make, signers = _new_key(parsed, f"family-{parsed.name}"), signers_of(parsed)
    key = ceremony.add_family(repository_of(parsed), parsed.name, make, signers, time.time())
    return _say(f"The family '{parsed.name}' is signed by {key.keyid[:8]}.")


def _withdraw(parsed: argparse.Namespace) -> int:
    signers = signers_of(parsed)
    ceremony.remove_family(repository_of(parsed), parsed.name, signers, time.time())
    return _say(f"Boxes are offered nothing of '{parsed.name}' any more.")


def _rotate(parsed: argparse.Namespace) -> int:
    make, repository = _new_key(parsed, parsed.role), repository_of(parsed)
    signers, goes = signers_of(parsed), parsed.replace
    key = ceremony.replace_key(repository, parsed.role, goes, make, signers, time.time())
    return _say(f"{parsed.role} is signed by {key.keyid[:8]} from now on.")


def _renew(parsed: argparse.Namespace) -> int:
    repository, signers = repository_of(parsed), signers_of(parsed)
    ceremony.renew(repository, parsed.role, signers, time.time())
    return _warn(repository, signers)


def _show(parsed: argparse.Namespace) -> int:
    for state in inventory(repository_of(parsed).read(signers_of(parsed))):
        keys = ", ".join(keyid[:8] for keyid in state.keyids)
        _say(
            f"{state.role:24} version {state.version:4}  expires {state.expires:%Y-%m-%d}  "
            f"{state.threshold} of {len(state.keyids)}: {keys}"
        )
    return 0


def _refresh(parsed: argparse.Namespace) -> int:
    repository, signers = repository_of(parsed), signers_of(parsed)
    with repository.editing(signers, time.time()) as draft:
        draft.changed.add("timestamp")
    return _warn(repository, signers)


def _rollout(parsed: argparse.Namespace) -> int:
    change = RolloutChange(
        rings=tuple(parsed.ring) if parsed.ring else None,
        percent=parsed.percent,
        not_before=parsed.not_before,
        not_after=parsed.not_after,
    )
    if change == RolloutChange():
        raise PublishError("Say what shall change: --percent, --halt, --ring, --not-before …")
    changed = set_rollout(
        repository_of(parsed), parsed.name, change, signers_of(parsed), time.time(),
        release=parsed.release,
    )  # fmt: skip
    for signed in changed:
        offer = signed.offer
        rings = ", ".join(offer.rollout.rings) or "every ring"
        _say(f"{offer.name} {offer.version} ({offer.target}), release {offer.release}: "
             f"{offer.rollout.percent} % of {rings}{_window(offer.rollout)}")  # fmt: skip
    return 0


def _window(rollout: Rollout) -> str:
    return "".join(
        f", not {word} {datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%MZ}"
        for word, moment in (("before", rollout.not_before), ("after", rollout.not_after))
        if moment is not None
    )


def _new_key(parsed: argparse.Namespace, role: str) -> ceremony.MakeKey:
    def make() -> Key:
        if parsed.public_key is not None:
            return read_public_key(parsed.public_key)
        folder = _folders(parsed)[0]
        return make_key(folder, role, ask_new_passphrase(str(folder)))

    return make


def _warn(repository: Repository, signers: KeyFolders) -> int:
    soon = time.time() + _WARN
    for state in inventory(repository.read(signers)):
        _say(f"{state.role} is good until {state.expires:%Y-%m-%d}.")
        if state.expires.timestamp() < soon and state.role not in ("timestamp", "stick"):
            role = ceremony.ONLINE if state.role == "snapshot" else state.role
            _say(f"  That is soon: renew it with 'outpost-export keys renew {role}'.")
    return 0


def _folders(parsed: argparse.Namespace) -> Sequence[Path]:
    return parsed.keys or [Path("keys")]


def _say(line: str) -> int:
    sys.stdout.write(f"{line}\n")
    return 0


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 3650:  # noqa: PLR2004 - ten years
        raise argparse.ArgumentTypeError("must be between 1 and 3650")
    return days


def _percent(text: str) -> int:
    percent = int(text)
    if not 0 <= percent <= 100:  # noqa: PLR2004 - a hundred in a hundred
        raise argparse.ArgumentTypeError("must be between 0 and 100")
    return percent


def _moment(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())
