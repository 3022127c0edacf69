"""``outpost activate``, ``rollback``, ``pin``, ``unpin`` and ``history``: slots, moved by hand."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from outpost_runtime.cli.storing import add_store_option
from outpost_runtime.errors import NotFoundError, StoreError
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update.activation import Change
from outpost_runtime.update.slots import Slot

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_SHOWN = 20


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    activate = commands.add_parser(
        "activate",
        help="let a candidate through the gate now, or try a refused bundle again",
    )
    activate.add_argument("name", metavar="MODEL")
    add_store_option(activate)
    activate.set_defaults(run=_activate)
    rollback = commands.add_parser(
        "rollback", help="serve the previous bundle again; the active one is not tried again"
    )
    rollback.add_argument("name", metavar="MODEL")
    rollback.add_argument("--reason", default="Rolled back by hand.", help="for the history")
    add_store_option(rollback)
    rollback.set_defaults(run=_rollback)
    for word, text in (
        ("pin", "take no update of a model until it is unpinned"),
        ("unpin", "take updates of a model again"),
    ):
        parser = commands.add_parser(word, help=text)
        parser.add_argument("name", metavar="MODEL")
        add_store_option(parser)
        parser.set_defaults(run=_pin if word == "pin" else _unpin)
    history = commands.add_parser("history", help="show what became of this box's bundles")
    history.add_argument("names", nargs="*", metavar="MODEL", help="(default: all)")
    history.add_argument("--all", action="store_true", help=f"not only the last {_SHOWN}")
    history.add_argument("--json", action="store_true", help="print JSON, one line an event")
    add_store_option(history)
    history.set_defaults(run=_history)


def _activate(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.alone import pass_gates  # noqa: PLC0415 - loads ONNX Runtime

    store = Store(parsed.store)
    before = store.slot(parsed.name)
    if before.candidate is None and before.refused:
        bundle = before.refused[-1].bundle
        _change(store, parsed.name, lambda n, s, now: activation.forgive(n, s, bundle, now))
        sys.stdout.write(
            f"{bundle[:12]} may be tried again; 'outpost sync' brings it if it is still offered.\n"
        )
        return 0
    if before.candidate is None:
        raise NotFoundError(
            f"'{parsed.name}' has no candidate.", hint="'outpost sync' brings new bundles."
        )
    pass_gates(store)
    return show_outcome(store, {parsed.name: before.candidate.bundle})


def show_outcome(store: Store, candidates: dict[str, str]) -> int:
    """Print what became of candidates, bundles by name; returns 1 if one was refused."""
    refused = False
    for name, bundle in candidates.items():
        now = store.slot(name)
        reason = now.refusal(bundle)
        if now.active == bundle:
            text = "active, on probation" if now.probation else "active"
        elif reason is not None:
            refused, text = True, f"refused: {reason.reason} What was active before is served on."
        else:
            text = "waiting"
        sys.stdout.write(f"{name} {bundle[:12]}: {text}\n")
    return 1 if refused else 0


def _rollback(parsed: argparse.Namespace) -> int:
    from outpost_runtime.update.probation import going_back  # noqa: PLC0415 - loads ONNX Runtime

    store = Store(parsed.store)
    store.slot(parsed.name)  # a name that is not here is an error of its own

    def decide(slots: dict[str, Slot]) -> Change:
        slot = slots[parsed.name]
        if slot.active is None or slot.previous is None:
            raise StoreError(
                f"'{parsed.name}' has no previous bundle to go back to.",
                hint="'outpost history' shows what it has had.",
            )
        return going_back(store, slots, parsed.name, parsed.reason, int(time.time()))

    change = store.change(decide)
    assert change is not None  # noqa: S101 - it was decided
    for name, slot in change.slots.items():
        sys.stdout.write(f"{name}: back to {(slot.active or 'nothing')[:12]}\n")
    return 0


def _pin(parsed: argparse.Namespace) -> int:
    _change(Store(parsed.store), parsed.name, activation.pin)
    sys.stdout.write(f"{parsed.name} takes no updates until: outpost unpin {parsed.name}\n")
    return 0


def _unpin(parsed: argparse.Namespace) -> int:
    _change(Store(parsed.store), parsed.name, activation.unpin)
    sys.stdout.write(f"{parsed.name} takes updates again\n")
    return 0


def _change(store: Store, name: str, decide: Callable[[str, Slot, int], Change]) -> None:
    store.slot(name)  # a name that is not here is an error of its own
    store.change(lambda slots: decide(name, slots[name], int(time.time())))


def _history(parsed: argparse.Namespace) -> int:
    lines = [
        line
        for line in Store(parsed.store).history()
        if not parsed.names or line.get("name") in parsed.names
    ]
    for line in lines if parsed.all else lines[-_SHOWN:]:
        sys.stdout.write((json.dumps(line) if parsed.json else _shown(line)) + "\n")
    if not lines:
        sys.stdout.write("Nothing has happened yet.\n")
    return 0


def _shown(line: dict[str, Any]) -> str:
    try:
        at = f"{datetime.fromtimestamp(int(line.get('at') or 0), tz=UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, TypeError, OverflowError, OSError):  # damaged, and told all the same
        at = f"{'?':20}"
    bundle = str(line.get("bundle") or "")[:12]
    fields = f"{at}  {line.get('name', '?')!s:24} {line.get('what', '?')!s:10}"
    return f"{fields} {bundle:12}  {line.get('reason', '')}".rstrip()
