"""Which of the signed offers a box takes: pure, offers, box and moment in, choices out.

A box needs nobody to ask: who it is stands in its own file, for whom a release is stands in the
signed offer, and the share of a percentage is decided by a hash that is the same every time.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outpost_runtime.update.offer import Offer, Rollout
from outpost_runtime.update.slots import Slot

_NUMBERS = re.compile(r"\d+")
_BUCKETS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Who a box is, as far as offers ask.

    Attributes:
        model: The box's kind, such as ``press-terminal``; empty for none.
        rings: Rings that it belongs to.
        names: Models that it wants; empty for all.
        targets: Targets that it can run, the best first.
        runtime: Version of this runtime.
    """

    id: str
    model: str = ""
    rings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    targets: tuple[str, ...]
    runtime: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a box does about one model name.

    Attributes:
        offer: What to install, or None where it stays as it is.
        reason: Why it stays as it is, for people.
    """

    name: str
    offer: Offer | None
    reason: str = ""


def choose(
    offers: Iterable[Offer], device: Device, slots: Mapping[str, Slot], now: int
) -> list[Choice]:
    """Choose at most one offer for every name that is offered."""
    by_name: dict[str, list[Offer]] = {}
    for offer in offers:
        by_name.setdefault(offer.name, []).append(offer)
    return [
        _choice(name, by_name[name], device, slots.get(name, Slot()), now)
        for name in sorted(by_name)
    ]


def bucket(device: str, offer: Offer) -> int:
    """Return where a device stands among all for a release: 0 to 9,999.

    The same device, name and release always give the same: a percentage that grows only adds.
    """
    text = f"{device}\n{offer.name}\n{offer.release}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) % _BUCKETS


def why_not(offer: Offer, device: Device, now: int) -> str:
    """Say why an offer is not for a box at this moment; empty if it is."""
    rollout = offer.rollout
    if offer.devices and device.model not in offer.devices:
        return f"is for {', '.join(offer.devices)}, and this box is '{device.model}'"
    if _version(offer.minimum_runtime) > _version(device.runtime):
        return f"needs runtime {offer.minimum_runtime}, and this is {device.runtime}"
    if rollout.percent == 0:
        return "is halted by its publisher"
    if rollout.rings and not set(rollout.rings) & set(device.rings):
        return f"is for the rings {', '.join(rollout.rings)}"
    if not _reached(rollout, device, offer):
        return f"has reached {rollout.percent} % of the boxes, and not this one"
    if rollout.not_before is not None and now < rollout.not_before:
        return "is for later"
    if rollout.not_after is not None and now > rollout.not_after:
        return "came with a window that has closed"
    return ""


def _choice(name: str, offers: Sequence[Offer], device: Device, slot: Slot, now: int) -> Choice:
    if device.names and name not in device.names:
        return Choice(name=name, offer=None, reason="is not wanted on this box")
    if slot.pinned:
        return Choice(name=name, offer=None, reason="is pinned")
    runnable = [offer for offer in offers if offer.target in device.targets]
    if not runnable:
        targets = ", ".join(sorted({offer.target for offer in offers}))
        return Choice(name=name, offer=None, reason=f"is built for {targets} only")
    reasons = {id(offer): _why_not_here(offer, device, slot, now) for offer in runnable}
    fitting = [offer for offer in runnable if not reasons[id(offer)]]
    if fitting:
        best = min(fitting, key=lambda o: (device.targets.index(o.target), -o.release))
        if _waits(best, slot):
            return Choice(name=name, offer=None, reason="waits for the gate")
        if best.bundle != slot.active or best.release > slot.release:
            return Choice(name=name, offer=best)
        return Choice(name=name, offer=None, reason="is up to date")
    newest = max(runnable, key=lambda offer: offer.release)
    return Choice(name=name, offer=None, reason=f"release {newest.release} {reasons[id(newest)]}")


def _waits(offer: Offer, slot: Slot) -> bool:
    candidate = slot.candidate
    return candidate is not None and (candidate.bundle, candidate.release) == (
        offer.bundle,
        offer.release,
    )


def _why_not_here(offer: Offer, device: Device, slot: Slot, now: int) -> str:
    if offer.release < slot.release:
        return f"is older than what is here ({slot.release})"
    if offer.release == slot.release and offer.bundle == slot.active:
        return ""
    refusal = slot.refusal(offer.bundle)
    if refusal is not None:
        return f"has failed here before: {refusal.reason}"
    return why_not(offer, device, now)


def _reached(rollout: Rollout, device: Device, offer: Offer) -> bool:
    return bucket(device.id, offer) < rollout.percent * (_BUCKETS // 100)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBERS.findall(text)[:4])
