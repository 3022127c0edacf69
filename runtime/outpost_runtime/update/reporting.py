"""What a box says of itself: collected here, signed in :mod:`status_report`."""

from pathlib import Path
from typing import Any

from outpost_runtime import __version__
from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import OutpostError, StoreError
from outpost_runtime.store import Store
from outpost_runtime.update.box import Box
from outpost_runtime.update.slots import Slot
from outpost_runtime.update.status_report import (
    MAX_EVENTS,
    Event,
    Installed,
    ModelStatus,
    StatusReport,
    sign_status,
)

_REFUSALS = ("refused", "back")


def write_status(box: Box, path: Path, now: float) -> None:
    """Write a signed status report.

    Raises:
        StoreError: The file cannot be written, or the store cannot be read.
    """
    data = sign_status(report(box, now), box.own.sign)
    try:
        write_durably(path, data)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}.") from error


def report(box: Box, now: float) -> StatusReport:
    """Return what a box has and what became of it."""
    history = [_event(line) for line in box.store.history()]
    return StatusReport(
        device=box.device.id,
        model=box.device.model,
        runtime=__version__,
        keys=box.own.describe(),
        made=int(now),
        time_bound=int(box.trust.time(0.0)),
        models={name: _model(box.store, slot) for name, slot in box.store.slots().items()},
        history=tuple(history[-MAX_EVENTS:]),
        refusals=tuple([event for event in history if event.what in _REFUSALS][-MAX_EVENTS:]),
    )


def _model(store: Store, slot: Slot) -> ModelStatus:
    candidate = slot.candidate
    return ModelStatus(
        active=_installed(store, slot.active, slot.release),
        previous=_installed(store, slot.previous, slot.previous_release),
        candidate=None
        if candidate is None
        else _installed(store, candidate.bundle, candidate.release),
    )


def _installed(store: Store, bundle: str | None, release: int) -> Installed | None:
    if bundle is None:
        return None
    try:
        version = store.bundle(bundle).manifest.version
    except OutpostError:  # its files are damaged, and the report says what the slot says
        version = "?"
    return Installed(bundle=bundle, version=version, release=release)


def _event(line: dict[str, Any]) -> Event:
    bundle = line.get("bundle")
    return Event(
        time=int(line.get("at") or 0),
        name=str(line.get("name", "")),
        what=str(line.get("what", "")),
        bundle=bundle if isinstance(bundle, str) else None,
        reason=str(line.get("reason", "")),
    )
