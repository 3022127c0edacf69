"""``outpost system``: what the image's own units ask of a box, when its system is updated."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_runtime.cli.storing import add_store_option
from outpost_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from outpost_runtime.update.system_files import NextSystem

    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_DESCRIPTION = """\
A box that runs a device image gets new systems as releases of the name 'system'. These are the
steps of its units; nobody needs them by hand. See docs/device-image.md.
"""


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    system = commands.add_parser(
        "system", help="steps of a device image's own update", description=_DESCRIPTION
    )
    steps = system.add_subparsers(required=True, metavar="STEP")
    stage = steps.add_parser(
        "stage", help="write the next system's files into STORE/system, and print its version"
    )
    stage.add_argument("--config", type=Path, metavar="FILE", help="outpost.toml, for [update]")
    add_store_option(stage)
    stage.set_defaults(run=_stage)
    tried = steps.add_parser("tried", help="note that the box restarts for it now")
    add_store_option(tried)
    tried.set_defaults(run=_tried)
    settle = steps.add_parser("settle", help="after a start: note what became of it")
    add_store_option(settle)
    settle.set_defaults(run=_settle)


def _stage(parsed: argparse.Namespace) -> int:
    from outpost_runtime.cli.updating import policy_of  # noqa: PLC0415
    from outpost_runtime.update.agent import circumstances  # noqa: PLC0415
    from outpost_runtime.update.policy import why_wait  # noqa: PLC0415

    policy = policy_of(parsed.config)
    if why_wait(policy, circumstances(policy, datetime.now(UTC).astimezone())):
        return 0
    version = _next_system(parsed.store).stage()
    if version is not None:
        sys.stdout.write(f"{version}\n")
    return 0


def _tried(parsed: argparse.Namespace) -> int:
    _next_system(parsed.store).note_try()
    return 0


def _settle(parsed: argparse.Namespace) -> int:
    sys.stdout.write(f"{_next_system(parsed.store).settle()}\n")
    return 0


def _next_system(store: Path) -> "NextSystem":
    from outpost_runtime.store import Store  # noqa: PLC0415
    from outpost_runtime.update.system_files import NextSystem, running_system  # noqa: PLC0415

    running = running_system()
    if running is None:
        raise UnsupportedError(
            "This machine runs no device image of Outpost.",
            hint="Its own package manager updates its system.",
        )
    return NextSystem(Store(store), running)
