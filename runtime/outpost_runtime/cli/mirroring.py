"""``outpost mirror``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_runtime.address import Address
from outpost_runtime.errors import ConfigurationError

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_DEFAULT_ADDRESS = "127.0.0.1:8002"
_DEFAULT_MIB = 4096


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    mirror = commands.add_parser(
        "mirror", help="keep a repository's files here for the other boxes of this site"
    )
    mirror.add_argument(
        "--repo", required=True, metavar="URL", help="the repository: a URL or a folder"
    )
    mirror.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="where files are kept"
    )
    mirror.add_argument(
        "--address", default=_DEFAULT_ADDRESS, metavar="ADDRESS", help="for HTTP (%(default)s)"
    )
    mirror.add_argument(
        "--size",
        type=int,
        default=_DEFAULT_MIB,
        metavar="MIB",
        help="kept at most; what was not used for longest goes first (%(default)s)",
    )
    mirror.add_argument(
        "--ca-bundle", type=Path, metavar="FILE", help="certificates to check the repository with"
    )
    mirror.add_argument(
        "--no-announce", action="store_true", help="do not tell the network by mDNS"
    )
    mirror.add_argument(
        "--allow-remote-unauthenticated",
        action="store_true",
        help="listen beyond this machine; anybody who reaches the port can read the repository, "
        "whose blocks are encrypted",
    )
    mirror.set_defaults(run=_mirror)


def _mirror(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.mirror.run import MirrorSettings, mirror_until_signal  # noqa: PLC0415

    address = Address.parse(parsed.address)
    if not address.is_loopback and not parsed.allow_remote_unauthenticated:
        raise ConfigurationError(
            f"{address} can be reached from other machines, and nobody is asked who they are.",
            hint="Keep to 127.0.0.1, or say --allow-remote-unauthenticated.",
        )
    if parsed.size < 1:
        raise ConfigurationError("A mirror needs at least 1 MiB.", hint="Choose a larger --size.")
    settings = MirrorSettings(
        repository=parsed.repo,
        folder=parsed.folder,
        limit=parsed.size << 20,
        ca_bundle=parsed.ca_bundle,
        announce=not parsed.no_announce and not address.is_loopback,
    )
    mirror_until_signal(settings, address)
    return 0
