"""The command line: arguments to functions, errors to one message and one hint."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from outpost_runtime import __version__
from outpost_runtime.cli import adapters, ask, mirroring, serving, slots, storing, system, updating
from outpost_runtime.errors import OutpostError

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
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except OutpostError as error:
        sys.stderr.write(f"outpost: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"outpost: {where}{error.strerror or error}.\n")
        sys.stderr.write("  Name files and folders that this user may read and write.\n")
        return 1
    return status


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
