"""What becomes of a bundle on probation: pure, figures in, a verdict out.

It goes back when it fails more often than the bundle before it, or lets clients wait longer. Waits
are compared so that neither load nor lengths make a difference:

1. Only medians of requests alike count, each of at least ``enough`` requests.
2. What has as many others beside it and as much work ahead of it may take ``slower`` times as long
   as before. What has more may take more, in proportion to both; what has less need not
   take less: that is how an engine that shares its runs behaves, whatever the clients do.
3. A figure is worse when more than half of the requests that can be judged by it are.
4. Milliseconds are nobody's loss: less than ``noticed`` is no difference.
5. Right after a swap the last answers of the bundle before take their share of the same cores, so
   waits are judged from a tenth of the probation on.

A box that is overloaded from the first to the last minute of a probation has no requests that are
alike to those before; there only a bundle that is slower by more than that load is noticed.
"""

import enum
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from outpost_runtime.latency import Figure, UsualWait
from outpost_runtime.update.slots import Behaviour, Probation

_SETTLING = 0.1
_MOST_BITS = 64
_WORDS = {
    Figure.FIRST_TOKEN: "The first token takes",
    Figure.TOKEN: "A token takes",
    Figure.CALL: "A call takes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbationLimits:
    """When a bundle on probation is committed, and when it goes back.

    Attributes:
        seconds: How long it is watched.
        enough: Requests below which figures say nothing.
        failures: Share of failed requests that is always tolerated.
        slower: How many times the waits with the bundle before it are tolerated.
        noticed: Seconds by which a wait has to be longer than before, at least.
    """

    seconds: int = 600
    enough: int = 20
    failures: float = 0.05
    slower: float = 3.0
    noticed: float = 0.01


class Verdict(enum.Enum):
    """What becomes of a bundle on probation."""

    WATCH = enum.auto()
    COMMIT = enum.auto()
    BACK = enum.auto()


def judge(
    probation: Probation, seen: Behaviour, watched: float, limits: ProbationLimits
) -> tuple[Verdict, str]:
    """Say what becomes of a bundle on probation, and why.

    Args:
        seen: How it has done in this server.
        watched: Seconds that this server has served it, by a clock that nobody sets.
    """
    total = seen.requests + seen.failures
    if total >= limits.enough:
        share, usual = seen.failures / total, _failure_share(probation.before)
        if share > max(limits.failures, 2 * usual):
            return Verdict.BACK, f"{share:.0%} of {total} requests failed."
    seconds = probation.watched + watched
    if seconds >= _SETTLING * limits.seconds:
        reason = next(_longer_waits(probation.before.waits, seen.waits, limits), None)
        if reason is not None:
            return Verdict.BACK, reason
    if seconds >= limits.seconds:
        return Verdict.COMMIT, f"{total} requests in {seconds:.0f} s."
    return Verdict.WATCH, ""


def _failure_share(seen: Behaviour) -> float:
    total = seen.requests + seen.failures
    return seen.failures / total if total else 0.0


def _longer_waits(
    before: Iterable[UsualWait], now: Iterable[UsualWait], limits: ProbationLimits
) -> Iterator[str]:
    """Yield what takes too long."""
    known = [wait for wait in before if wait.count >= limits.enough]
    for figure in Figure:
        judged, longer, times = 0, 0, 0.0
        for wait in now:
            if wait.figure is not figure or wait.count < limits.enough:
                continue
            expected = _expected(wait, known)
            if expected is None:
                continue
            judged += wait.count
            if _is_longer(wait.seconds, expected, limits):
                longer += wait.count
                times = max(times, wait.seconds / expected)
        if longer > judged / 2:
            yield f"{_WORDS[figure]} {times:.1f} times as long as with the bundle before it."


def _expected(wait: UsualWait, known: Iterable[UsualWait]) -> float | None:
    """Return how long the bundle before would have let clients wait at most, as far as known."""
    return min((_scaled(one, wait) for one in known if one.figure is wait.figure), default=None)


def _scaled(known: UsualWait, wait: UsualWait) -> float:
    more = max(0, wait.beside - known.beside) + max(0, wait.work - known.work)
    return math.ldexp(known.seconds, min(more, _MOST_BITS))


def _is_longer(seconds: float, expected: float, limits: ProbationLimits) -> bool:
    return seconds > limits.slower * expected and seconds - expected >= limits.noticed
