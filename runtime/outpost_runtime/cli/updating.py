"""``outpost provision``, ``sync``, ``import`` and ``export-status``: a box and its publisher."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_runtime.cli.storing import add_store_option
from outpost_runtime.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from outpost_runtime.update.device import DeviceFile
    from outpost_runtime.update.planning import Plan
    from outpost_runtime.update.policy import UpdatePolicy
    from outpost_runtime.update.sources import Sources
    from outpost_runtime.update.sync import Outcome

    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_MAX_ROOT_BYTES = 512_000
_TPM = "device:/dev/tpmrm0"
_SAID = {
    "model": "--model",
    "rings": "--ring",
    "names": "--want",
    "targets": "--target",
    "sources": "--repo",
}
"""What a box is told, as its file calls it, and with which option."""
_PROVISION_HELP = """\
Tell a new box whom to trust, who it is and where to ask. Done again, it replaces everything but the
box's keys: what is not said again is not so any more. What has changed is shown.
"""


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    _add_provision(commands)
    sync = commands.add_parser(
        "sync", help="bring what the publisher offers, and let it through the gate"
    )
    sync.add_argument(
        "--repo", action="append", metavar="URL", help="ask here (default: as provisioned)"
    )
    sync.add_argument(
        "--repair",
        action="store_true",
        help="instead, read all that is here and fetch again what the disk has damaged",
    )
    sync.add_argument("--config", type=Path, metavar="FILE", help="outpost.toml, for [update]")
    _add_update_options(sync)
    sync.set_defaults(run=_sync)
    bring = commands.add_parser(
        "import", help="the same from a stick or a folder that holds a repository"
    )
    bring.add_argument("path", type=Path, metavar="PATH")
    _add_update_options(bring)
    bring.set_defaults(run=_import)
    status = commands.add_parser(
        "export-status", help="write what this box has and did, signed, for a stick"
    )
    status.add_argument("path", type=Path, metavar="FILE", help="or a folder, for <id>.json in it")
    add_store_option(status)
    status.set_defaults(run=_export_status)


def _add_provision(commands: "Commands") -> None:
    provision = commands.add_parser(
        "provision",
        help="tell a new box, once, whom to trust and where to ask",
        description=_PROVISION_HELP,
    )
    provision.add_argument(
        "--root", type=Path, required=True, metavar="FILE", help="the publisher's root.json"
    )
    provision.add_argument(
        "--repo",
        action="append",
        required=True,
        metavar="URL",
        help="where the repository is: https://…, http://… or a folder; again for others",
    )
    provision.add_argument(
        "--model", default="generic", help="the box's kind, which offers may name (%(default)s)"
    )
    provision.add_argument(
        "--ring", action="append", default=[], help="a ring of roll-outs; again for others"
    )
    provision.add_argument(
        "--want", action="append", default=[], metavar="NAME", help="a model (default: all)"
    )
    provision.add_argument(
        "--target", action="append", default=[], help="it may run, best first (default: any)"
    )
    provision.add_argument(
        "--tpm",
        nargs="?",
        const=_TPM,
        metavar="TCTI",
        help=f"seal the box's keys with its TPM 2.0 ({_TPM}); without it they lie in a file, "
        "which is weaker: who has the disk has the models",
    )
    provision.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or IP address at which clients will reach it, for its TLS certificate; again "
        "for others",
    )
    provision.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the outpost.toml that this box will serve with: a mistake in it is said here",
    )
    add_store_option(provision)
    provision.set_defaults(run=_provision)


def _add_update_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show the plan and fetch nothing")
    add_store_option(parser)


def _provision(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.box import IDENTITY, Provisioning, provision  # noqa: PLC0415
    from outpost_runtime.update.certificate import CERTIFICATE, certificate_of, name_of  # noqa: PLC0415
    from outpost_runtime.update.sources import open_sources  # noqa: PLC0415

    open_sources(parsed.repo, policy_of(parsed.config))  # before anything is written
    try:
        with parsed.root.open("rb") as file:
            root = file.read(_MAX_ROOT_BYTES)
    except OSError as error:
        raise ConfigurationError(
            f"{parsed.root} cannot be read: {error.strerror or error}.",
            hint="Bring the publisher's root.json over a way that you trust.",
        ) from error
    before, certificate = _provisioned_before(parsed.store), certificate_of(parsed.store)
    box = provision(
        parsed.store,
        root,
        Provisioning(
            model=parsed.model,
            rings=parsed.ring,
            names=parsed.want,
            targets=parsed.target,
            sources=parsed.repo,
            tpm=parsed.tpm,
            hosts=parsed.host,
        ),
    )
    for line in _replaced(before, box.device) if before else ():
        sys.stdout.write(f"{line}\n")
    if certificate not in (b"", certificate_of(parsed.store)):
        sys.stdout.write("The TLS certificate is a new one, which clients have to be given.\n")
    sys.stdout.write(
        f"This box is {box.device.id[:16]}, a {box.device.model}. Its keys: {box.own.describe()}\n"
        f"Bring {parsed.store / IDENTITY} to the publisher, who lets it read the models:\n"
        f"  outpost-export keys grant {IDENTITY} --repo REPO --keys KEYS\n"
        f"Clients know it over TLS by {parsed.store / CERTIFICATE}, as {name_of(box.device.id)}.\n"
    )
    return 0


def _provisioned_before(store: Path) -> "DeviceFile | None":
    from outpost_runtime.update.device import is_provisioned, read_device  # noqa: PLC0415

    try:
        return read_device(store) if is_provisioned(store) else None
    except StoreError:
        return None  # damaged, which provisioning mends


def _replaced(before: "DeviceFile", after: "DeviceFile") -> Iterator[str]:
    """Yield a line for each thing that an operator had said otherwise of a box."""
    for name, option in _SAID.items():
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"{option} was {_shown(old)} and is {_shown(new)} now."


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "not said"


def _sync(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.device import read_device  # noqa: PLC0415
    from outpost_runtime.update.sources import mirrors_near_by, open_sources  # noqa: PLC0415

    policy = policy_of(parsed.config)
    locations = parsed.repo or read_device(parsed.store).sources
    mirrors = mirrors_near_by() if policy.mirrors and not parsed.repo else ()
    sources = open_sources(locations, policy, mirrors)
    if parsed.repair:
        return _repair(parsed, sources)
    return _update(parsed, sources, from_stick=False)


def _repair(parsed: argparse.Namespace, sources: "Sources") -> int:
    from outpost_runtime.update.box import open_box  # noqa: PLC0415
    from outpost_runtime.update.bringing import Wishes  # noqa: PLC0415
    from outpost_runtime.update.sync import repair  # noqa: PLC0415

    bar = _Bar()
    plan = repair(open_box(parsed.store), sources, Wishes(planned=bar.begin, progress=bar.add))
    bar.end()
    if plan is None:
        sys.stdout.write("Every block is as it should be.\n")
    else:
        sys.stdout.write(f"{len(plan.steps)} blocks were damaged, and are as they should be.\n")
    return 0


def _import(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.fetch.folder import FolderFetcher  # noqa: PLC0415
    from outpost_runtime.update.sources import Sources  # noqa: PLC0415

    sources = Sources(fetchers=(FolderFetcher(parsed.path),))
    return _update(parsed, sources, from_stick=True)


def policy_of(config: Path | None) -> "UpdatePolicy":
    """Return ``[update]`` of a file, or what holds without one."""
    from outpost_runtime.opening import ModelSettings  # noqa: PLC0415
    from outpost_runtime.settings import read_settings  # noqa: PLC0415
    from outpost_runtime.update.policy import UpdatePolicy  # noqa: PLC0415

    return UpdatePolicy() if config is None else read_settings(config, ModelSettings()).update


def _update(parsed: argparse.Namespace, sources: "Sources", *, from_stick: bool) -> int:
    from outpost_runtime.cli.slots import show_outcome  # noqa: PLC0415
    from outpost_runtime.update.alone import pass_gates  # noqa: PLC0415
    from outpost_runtime.update.box import open_box  # noqa: PLC0415
    from outpost_runtime.update.bringing import Wishes  # noqa: PLC0415
    from outpost_runtime.update.sync import sync  # noqa: PLC0415

    box = open_box(parsed.store)
    bar = _Bar()
    wishes = Wishes(
        from_stick=from_stick, dry_run=parsed.dry_run, planned=bar.begin, progress=bar.add
    )
    began = time.monotonic()
    outcome = sync(box, sources, time.time(), wishes)
    bar.end()
    _show(outcome, time.monotonic() - began)
    waiting = {n: s.candidate.bundle for n, s in box.store.model_slots().items() if s.candidate}
    candidates = waiting | outcome.candidates
    if parsed.dry_run or not candidates:
        return 0
    pass_gates(box.store)
    return show_outcome(box.store, candidates)


def _show(outcome: "Outcome", seconds: float) -> None:
    from outpost_runtime.update.planning import describe  # noqa: PLC0415

    for name, reason in sorted(outcome.reasons.items()):
        sys.stdout.write(f"{name}: {reason}\n")
    if outcome.plan is None:
        if not outcome.reasons:
            sys.stdout.write("The publisher offers nothing.\n")
        return
    for line in describe(outcome.plan):
        sys.stdout.write(f"{line}\n")
    if outcome.staged:
        sys.stdout.write(f"fetched and checked in {seconds:.1f} s\n")


def _export_status(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.box import open_box  # noqa: PLC0415
    from outpost_runtime.update.reporting import write_status  # noqa: PLC0415

    box = open_box(parsed.store)
    path = parsed.path / f"{box.device.id[:16]}.json" if parsed.path.is_dir() else parsed.path
    write_status(box, path, time.time())
    sys.stdout.write(f"{path} says what this box has and did; its key has signed it.\n")
    return 0


class _Bar:
    """Shows how much of a plan has come, where somebody looks."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._shown = sys.stderr.isatty()

    def begin(self, plan: "Plan") -> None:
        self._total, self._done = plan.fetched, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._shown and self._total:
            share = min(100, self._done * 100 // self._total)
            sys.stderr.write(f"\rfetching: {share} % of {self._total:,} bytes ")

    def end(self) -> None:
        if self._shown and self._done:
            sys.stderr.write("\n")
