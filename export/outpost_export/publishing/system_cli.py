"""The command ``outpost-export pack-system``."""

import argparse
from pathlib import Path

from rich.console import Console

from outpost_export.publishing.system_bundle import pack_system

_HELP = """\
Makes a bundle of a device image's system, for 'outpost-export publish'. KERNEL is the kernel image
that 'make image' has written, such as .cache/image/out/x86-generic/outpost_2.efi; system, hashes
and list of contents are found beside it. Every version is built, published and used once.
"""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of ``outpost-export``."""
    parser = commands.add_parser(
        "pack-system",
        help="make a bundle of a device image's system",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernel", type=Path, metavar="KERNEL", help="<image>_<version>.efi")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder that is made")
    parser.set_defaults(run=_pack)


def _pack(parsed: argparse.Namespace) -> int:
    bundle = pack_system(parsed.kernel, parsed.bundle)
    manifest = bundle.manifest
    Console().print(
        f"{parsed.bundle} is system {manifest.version} for boxes that take {manifest.target}."
    )
    return 0
