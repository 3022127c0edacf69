"""What a box has seen signed: the lower bounds of versions and of time.

Pure. Clocks first: the signed evidence of time is the field ``published`` of root and
timestamp. The newest one seen is a lower bound. A clock that says less (1970, after the
battery died) is wrong, and the bound is used instead. Nothing but signed metadata moves the
bound, so a clock in the far future spoils nothing once it is set right. Expiry is asked for
new installs only; versions, not times, keep old files out.

What the timestamp's keys have vouched for counts for as long as root trusts them. If they
were stolen and ran ahead, in versions or in time, the root that replaces them ends that
(TUF 1.0.34, 5.3.11); until then the bounds never fall.
"""

from dataclasses import dataclass

from outpost_runtime.errors import TrustError
from outpost_runtime.update.metadata import Medium, Root, Signed, Timestamp, medium_of, published


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The highest that this box has seen signed; it accepts nothing below.

    Attributes:
        time: Newest time of publication, in seconds since 1970.
        timestamp: Version of the newest timestamp.
        stick: Version of the newest timestamp of a stick.
        snapshot: Version of the newest snapshot that either named.
        keys: Ids of the keys that were trusted for timestamp and snapshot at that time.
    """

    time: int = 0
    timestamp: int = 0
    stick: int = 0
    snapshot: int = 0
    keys: frozenset[str] = frozenset()

    def under(self, root: Root) -> "Seen":
        """Return what of it still counts: nothing, once root has dropped one of the keys."""
        return self if self.keys <= online_keys(root) else Seen()

    def raised_by(self, timestamp: Timestamp, root: Root) -> "Seen":
        """Return this with the evidence of a timestamp that was verified under a root."""
        stick = medium_of(timestamp) is Medium.STICK
        return Seen(
            time=max(self.time, published(timestamp)),
            timestamp=self.timestamp if stick else max(self.timestamp, timestamp.version),
            stick=max(self.stick, timestamp.version) if stick else self.stick,
            snapshot=max(self.snapshot, timestamp.snapshot_meta.version),
            keys=online_keys(root),
        )


def trusted_time(now: float, root: Root, seen: Seen) -> float:
    """Return the time to judge by: the clock's, unless signed evidence says that it is later."""
    return max(now, published(root), seen.time)


def check_fresh(signed: Signed, name: str, time: float) -> None:
    """Refuse metadata that has expired.

    Raises:
        TrustError: It has expired at ``time`` (seconds since 1970).
    """
    if signed.expires.timestamp() <= time:
        raise TrustError(
            f"{name} expired on {signed.expires:%Y-%m-%d}; nothing new is installed by it.",
            hint="Check the box's clock; else the publisher must refresh the repository.",
        )


def online_keys(root: Root) -> frozenset[str]:
    """Return the ids of the keys that a root trusts for timestamp and snapshot."""
    roles = (root.roles["timestamp"], root.roles["snapshot"])
    return frozenset(keyid for role in roles for keyid in role.keyids if keyid in root.keys)
