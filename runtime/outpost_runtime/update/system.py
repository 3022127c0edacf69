"""A box's own system, updated like its models up to the moment when it is started: pure.

A release of the name ``system`` comes through the same metadata, rings, sources and blocks as every
other. What is different: no server opens it, and its gate is the box's next start.

::

    candidate ── written into the other slot of the disk, started ──→ it answers: active
        └──────────────────────────────────────────────────────────→ the old one is back: refused

Rules:

1. A box takes only systems of its own image, whose number is above the running one's.
2. Models and systems take turns: no system is installed while a candidate of a model waits, and
   no model is fetched from the moment that a system is installed until it is settled.
3. A system that was started and has not held is not tried again on this box.
4. The file system that the boxes start from is not this program's: systemd-sysupdate writes it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from outpost_runtime.errors import TrustError
from outpost_runtime.interface import SystemInterface
from outpost_runtime.manifest import Manifest
from outpost_runtime.update.activation import Change, refuse
from outpost_runtime.update.rollout import Device
from outpost_runtime.update.slots import SYSTEM, Event, Slot

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_LINE = re.compile(r"^(IMAGE_ID|IMAGE_VERSION)=\"?([a-z0-9-]+)\"?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """The system that this box runs: ``IMAGE_ID`` and ``IMAGE_VERSION`` of its ``os-release``."""

    image: str
    number: int

    @property
    def target(self) -> str:
        """The target of systems that this box can start."""
        return target_of(self.image)


def target_of(image: str) -> str:
    """Return the target of the systems of an image."""
    return f"system-{image}"


def is_number(version: str) -> bool:
    """Say whether a version can be one of a system: counted up from 1."""
    return bool(_NUMBER.fullmatch(version))


def parse_os_release(text: str) -> Running | None:
    """Return what runs; None on a machine that runs no image of ours."""
    found = dict(_LINE.findall(text))
    version = found.get("IMAGE_VERSION", "")
    if "IMAGE_ID" not in found or not is_number(version):
        return None
    return Running(image=found["IMAGE_ID"], number=int(version))


def wanting_system(device: Device, running: Running | None) -> Device:
    """Return a box as offers ask: whatever models it wants, it wants systems of its image."""
    if running is None:
        return device
    names = (*device.names, SYSTEM) if device.names else ()
    return replace(device, targets=(*device.targets, running.target), names=names)


def check_system(manifest: Manifest, running: Running) -> None:
    """Refuse a bundle that is no newer system for this box.

    Raises:
        TrustError: It is not; it says why.
    """
    interface, version = manifest.interface, manifest.version
    if not isinstance(interface, SystemInterface) or manifest.name != SYSTEM:
        raise TrustError(f"'{manifest.name}' {version} is no system.")
    if interface.image != running.image or manifest.target != running.target:
        raise TrustError(f"System {version} is one of {interface.image}, not of {running.image}.")
    beginning = f"{running.image}_{version}."
    if strangers := [name for name in manifest.files if not name.startswith(beginning)]:
        raise TrustError(f"System {version} has a file '{strangers[0]}' that is not its own.")
    if not is_number(version) or int(version) < running.number:
        raise TrustError(f"System {version} is older than {running.number}, which runs here.")


def why_wait(slots: Mapping[str, Slot]) -> str:
    """Say why no system is installed now; empty if one may."""
    waiting = [name for name, slot in slots.items() if name != SYSTEM and slot.candidate]
    return f"{', '.join(sorted(waiting))} waits for the gate" if waiting else ""


def settle(
    slot: Slot, version: str, running: Running, tried: str | None, now: int
) -> Change | None:
    """Say what became of a candidate, after the box has started and answers.

    Args:
        slot: The system's; it has a candidate.
        version: The candidate's.
        tried: Digest of the bundle that the box was restarted for, if it was.

    Returns:
        The change, or None where it has not been tried yet.
    """
    candidate = slot.candidate
    assert candidate is not None  # noqa: S101 - the caller's duty
    if version == str(running.number):
        settled = Slot(
            active=candidate.bundle,
            release=candidate.release,
            refused=slot.refused,
            pinned=slot.pinned,
        )
        event = Event(at=now, name=SYSTEM, what="committed", bundle=candidate.bundle)
        return Change(slots={SYSTEM: settled}, events=(event,))
    if tried == candidate.bundle:
        reason = f"System {version} did not hold: {running.number} has come back by itself."
        return refuse(SYSTEM, slot, reason, now)
    return None
