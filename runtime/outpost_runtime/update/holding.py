"""Which of the chosen releases can be installed together, and which have to wait: pure.

A base and the adapters that hang on it move together: a box never serves a base without an adapter
that it had, nor an adapter on another base than its own.
"""

from collections.abc import Mapping

from outpost_runtime.update.release import Release
from outpost_runtime.update.slots import Slot


def held_back(
    releases: Mapping[str, Release], slots: Mapping[str, Slot], bases: Mapping[str, str]
) -> dict[str, str]:
    """Return the names whose releases have to wait, and why.

    Args:
        releases: What was chosen, by name.
        slots: As the box has them.
        bases: Digests of the bases that active adapters hang on, by the adapters' names.
    """
    held: dict[str, str] = {}
    while True:
        going = {name: release for name, release in releases.items() if name not in held}
        found = {name: _why(name, going, slots, bases) for name in going}
        more = {name: reason for name, reason in found.items() if reason}
        if not more:
            return held
        held |= more


def groups(releases: Mapping[str, Release]) -> list[tuple[str, ...]]:
    """Return the names that have to come together: a base and its adapters, others alone."""
    bases = {release.bundle: name for name, release in releases.items()}
    found: dict[str, list[str]] = {}
    for name, release in releases.items():
        base = None if release.base is None else bases.get(release.base.bundle)
        found.setdefault(base or name, []).append(name)
    return [tuple(names) for names in found.values()]


def _why(
    name: str,
    going: Mapping[str, Release],
    slots: Mapping[str, Slot],
    bases: Mapping[str, str],
) -> str:
    base = going[name].base
    if base is not None:
        here = {_after(other, going, slots) for other in {*going, *slots} if other != name}
        return "" if base.bundle in here else f"its base '{base.name}' is not here"
    before = slots.get(name, Slot()).active
    if before in (None, going[name].bundle):
        return ""
    hanging = [adapter for adapter, digest in bases.items() if digest == before]
    missing = [a for a in hanging if not _follows(going.get(a), going[name].bundle)]
    return f"{', '.join(missing)} hang on what is here" if missing else ""


def _after(name: str, going: Mapping[str, Release], slots: Mapping[str, Slot]) -> str | None:
    if name in going:
        return going[name].bundle
    return slots[name].active


def _follows(adapter: Release | None, base: str) -> bool:
    return adapter is not None and adapter.base is not None and adapter.base.bundle == base
