"""``outpost add``, ``status`` and ``check``: what is in the store."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpost_runtime.bundle import Progress, read_bundle, verify
from outpost_runtime.cli.connecting import add_server_options, connected
from outpost_runtime.errors import NotFoundError, OutpostError
from outpost_runtime.interface import AdapterInterface
from outpost_runtime.store import DEFAULT_STORE, Store
from outpost_runtime.update.slots import Slot

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_MEGA = 1_000_000


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    add = commands.add_parser("add", help="verify a bundle and make it the active one of its name")
    add.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    add_store_option(add)
    add.set_defaults(run=_add)
    status = commands.add_parser(
        "status", help="show what is in the store and whether it is served"
    )
    status.add_argument("--json", action="store_true", help="print JSON for programs")
    add_server_options(status)
    add_store_option(status)
    status.set_defaults(run=_status)
    check = commands.add_parser(
        "check", help="run active bundles' golden inputs on this machine and compare the answers"
    )
    check.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all)")
    add_store_option(check)
    check.set_defaults(run=_check)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``."""
    parser.add_argument(
        "--store",
        type=Path,
        default=DEFAULT_STORE,
        metavar="DIR",
        help="the store's folder (%(default)s)",
    )


def _add(parsed: argparse.Namespace) -> int:
    size = read_bundle(parsed.bundle).size
    stored = Store(parsed.store).add(parsed.bundle, _progress(size))
    manifest = stored.manifest
    sys.stdout.write(
        f"{manifest.name} {manifest.version} ({manifest.target}, {stored.size / _MEGA:.1f} MB) "
        f"is active in {parsed.store}\n"
    )
    return 0


def _progress(size: int) -> Progress | None:
    if not sys.stderr.isatty():
        return None
    done = 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        end = "\n" if done >= size else ""
        sys.stderr.write(f"\rverifying and copying: {done * 100 // max(size, 1)} %{end}")

    return show


def _status(parsed: argparse.Namespace) -> int:
    store = Store(parsed.store)
    rows = [_row(store, name) for name in sorted({*store.names(), *store.slots()})]
    with connected(parsed) as client:
        serving = client.is_serving()
    if parsed.json:
        document = {"store": str(parsed.store), "serving": serving, "models": rows}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return 0
    sys.stdout.write(f"store   {parsed.store}\n")
    sys.stdout.write(f"server  {parsed.address}: {'serving' if serving else 'not reachable'}\n\n")
    if not rows:
        sys.stdout.write("No models yet; 'outpost add BUNDLE' brings one.\n")
    for row in rows:
        sys.stdout.write(
            f"{row['name']:24} {row['version']:8} {row['target']:10} {row['task']:20} "
            f"{row['size'] / _MEGA:9.1f} MB  {row['digest'][:12]}  {row['state']}\n"
        )
    return 0


def _row(store: Store, name: str) -> dict[str, Any]:
    try:
        slot, bundle = store.slot(name), store.active(name)
    except OutpostError as error:
        unknown = dict.fromkeys(("version", "target", "task", "digest"), "?")
        return {"name": name, **unknown, "size": 0, "state": error.message}
    manifest = bundle.manifest
    return {
        "name": name,
        "version": manifest.version,
        "target": manifest.target,
        "task": manifest.task,
        "size": bundle.size,
        "digest": bundle.digest,
        "state": _state(slot),
    }


def _state(slot: Slot) -> str:
    words = ["active" if slot.probation is None else "on probation"]
    if slot.candidate is not None:
        words.append(f"{slot.candidate.bundle[:12]} waits for the gate")
    if slot.pinned:
        words.append("pinned")
    return ", ".join(words)


def no_models(store: Path) -> NotFoundError:
    """Return what is said of a store in which there is nothing to work on."""
    return NotFoundError(
        f"The store {store} has no models.",
        hint="Bring one with 'outpost add BUNDLE --store DIR', or name another store.",
    )


def _check(parsed: argparse.Namespace) -> int:
    from outpost_runtime import golden  # noqa: PLC0415 - loads ONNX Runtime, which takes a second
    from outpost_runtime.opening import open_model  # noqa: PLC0415

    store = Store(parsed.store)
    names = parsed.models or store.names()
    if not names:
        raise no_models(parsed.store)
    for name in names:
        bundle = store.active(name)
        verify(bundle)
        interface = bundle.manifest.interface
        if isinstance(interface, AdapterInterface):
            base = store.bundle(interface.base)
            verify(base)
            measured = golden.check_adapter(bundle, base)
        else:
            model = open_model(bundle)
            try:
                measured = golden.check(model)
            finally:
                model.close()
        figures = ", ".join(f"{key} {value:.6g}" for key, value in measured.items())
        sys.stdout.write(f"{name}: as built ({figures})\n")
    return 0
