"""``outpost adapter``: adapters of a running server."""

import argparse
import sys
from typing import TYPE_CHECKING

from outpost_runtime.cli.connecting import add_server_options, connected

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_DESCRIPTION = """\
One base model and any number of adapters are served together; each request says which
adapter it wants (outpost generate BASE --adapter NAME). Adapters in the store are loaded
when the server starts; these commands load and unload them while it answers.
"""


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    adapter = commands.add_parser(
        "adapter", help="load and unload adapters of a running server", description=_DESCRIPTION
    )
    actions = adapter.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="name the loaded adapters")
    listing.set_defaults(run=_list)
    load = actions.add_parser("load", help="load an adapter that is in the server's store")
    load.set_defaults(run=_load)
    unload = actions.add_parser("unload", help="unload one when its running answers have ended")
    unload.set_defaults(run=_unload)
    for action in (load, unload):
        action.add_argument("name", metavar="NAME")
    for action in (listing, load, unload):
        add_server_options(action)


def _list(parsed: argparse.Namespace) -> int:
    with connected(parsed) as client:
        adapters = client.adapters()
    for adapter in adapters:
        line = f"{adapter.name} {adapter.version} on {adapter.model} ({adapter.digest[:12]})"
        sys.stdout.write(f"{line}\n")
    if not adapters:
        sys.stderr.write("No adapters are loaded.\n")
    return 0


def _load(parsed: argparse.Namespace) -> int:
    with connected(parsed) as client:
        adapter = client.load_adapter(parsed.name)
    sys.stdout.write(f"{adapter.name} {adapter.version} is loaded into {adapter.model}.\n")
    return 0


def _unload(parsed: argparse.Namespace) -> int:
    with connected(parsed) as client:
        client.unload_adapter(parsed.name)
    sys.stdout.write(f"{parsed.name} is unloaded.\n")
    return 0
