"""The command line: arguments to functions, errors to one message and one hint."""

import argparse
import logging
from collections.abc import Sequence

from outpost_runtime import __version__
from outpost_runtime.cli import adapters, ask, mirroring, serving, slots, storing, system, updating
from outpost_runtime.cli.ending import ended

_DESCRIPTION = "Serve your own models on your own box."
_EXAMPLES = """\
examples:
  outpost add bundles/my-model --store ./store      put a bundle into the store
  outpost serve --store ./store                     serve it on 127.0.0.1:8001
  outpost generate my-model "What does E-217 mean?" ask it, in another terminal
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return ended("outpost", lambda: parsed.run(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outpost",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"outpost {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    storing.add_commands(commands)
    serving.add_commands(commands)
    ask.add_commands(commands)
    adapters.add_commands(commands)
    slots.add_commands(commands)
    updating.add_commands(commands)
    system.add_commands(commands)
    mirroring.add_commands(commands)
    return parser
