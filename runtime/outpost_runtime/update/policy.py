"""When a box may update, and how much that may cost: pure.

::

    [update]
    every_minutes = 60
    windows = ["22:00-05:00"]         # local time; none: always
    only_while = "/run/vehicle/parked"       # a file: updates only while it is there
    metered_while = "/run/link/metered"      # a file: while it is there, bytes cost money
    metered_mebibytes = 8             # what an update may cost then
    megabits_per_second = 20.0        # of downloads
    mirrors = true                    # look for mirrors on the local network
    probation_minutes = 10

A window or a file that closes while something is fetched stops it; it goes on from there later.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.documents import Reader

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_DAY = 24 * 60
_SLOWEST_MEGABITS = 0.01
"""Below it servers would hang up; see ``fetch/throttle.py``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A time of every day; ``end`` before ``begin`` is over midnight.

    Attributes:
        begin: Minutes since midnight.
        end: The same.
    """

    begin: int
    end: int

    def contains(self, minute: int) -> bool:
        """Say whether a minute of the day lies in it."""
        return (minute - self.begin) % _DAY < (self.end - self.begin) % _DAY


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatePolicy:
    """When to ask, fetch and activate.

    Attributes:
        every_seconds: Between two questions; each box adds up to a tenth by chance.
        only_while: Updates only while this file exists; None is always.
        metered_while: While this file exists, an update may cost ``metered_bytes``.
        bytes_per_second: Of downloads; None is unlimited.
        mirrors: Look for mirrors on the local network.
    """

    every_seconds: float = 3600.0
    windows: tuple[Window, ...] = ()
    only_while: Path | None = None
    metered_while: Path | None = None
    metered_bytes: int = 8 << 20
    bytes_per_second: float | None = None
    mirrors: bool = False
    probation_seconds: int = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What a box sees of the world.

    Attributes:
        minute: Of the day, local time.
        allowed: Whether ``only_while`` exists, or is not set.
        metered: Whether ``metered_while`` exists.
    """

    minute: int
    allowed: bool = True
    metered: bool = False


def why_wait(policy: UpdatePolicy, seen: Circumstances) -> str:
    """Say why a box does not update now; empty if it may."""
    if not seen.allowed:
        return f"{policy.only_while} is not there"
    if policy.windows and not any(window.contains(seen.minute) for window in policy.windows):
        return "no window is open"
    return ""


def next_question(policy: UpdatePolicy, chance: float) -> float:
    """Return seconds until a box asks again.

    Args:
        chance: 0 to 1, by which a fleet that was switched on together spreads.
    """
    return policy.every_seconds * (1.0 + 0.1 * chance)


def read_policy(reader: Reader) -> UpdatePolicy:
    """Read ``[update]``.

    Raises:
        InvalidInputError: Something in it is wrong.
    """
    default = UpdatePolicy()
    speed = reader.optional("megabits_per_second", reader.number)
    windows = reader.optional("windows", lambda key: reader.list_of(key, str)) or []
    policy = UpdatePolicy(
        every_seconds=60 * _positive(reader, "every_minutes", default.every_seconds / 60),
        windows=_windows(reader, windows),
        only_while=_path(reader, "only_while"),
        metered_while=_path(reader, "metered_while"),
        metered_bytes=int(_positive(reader, "metered_mebibytes", 8) * (1 << 20)),
        bytes_per_second=None if speed is None else speed * 1e6 / 8,
        mirrors=reader.boolean("mirrors", default=default.mirrors),
        probation_seconds=int(60 * _positive(reader, "probation_minutes", 10)),
    )
    if speed is not None and speed < _SLOWEST_MEGABITS:
        raise reader.fault("megabits_per_second", f"must be {_SLOWEST_MEGABITS:g} or more")
    reader.end()
    return policy


def _windows(reader: Reader, texts: Sequence[str]) -> tuple[Window, ...]:
    windows = []
    for text in texts:
        found = _WINDOW.fullmatch(text)
        if not found:
            raise reader.fault("windows", f"has '{text[:40]}'; write them as 22:00-05:00")
        hour, minute, end_hour, end_minute = map(int, found.groups())
        windows.append(Window(begin=60 * hour + minute, end=60 * end_hour + end_minute))
    return tuple(windows)


def _path(reader: Reader, key: str) -> Path | None:
    text = reader.optional(key, reader.string)
    return None if text is None else Path(text)


def _positive(reader: Reader, key: str, default: float) -> float:
    value = reader.number(key, default)
    if value <= 0:
        raise reader.fault(key, "must be more than 0")
    return value
