"""How long clients wait, told so that two bundles can be compared: pure.

What somebody waits for depends on what he asks for and on who asks beside him. So waits are
kept among requests *alike*: of one figure, with as many others beside them and as much to be
computed before they end, each within a factor of two. Of every such kind a histogram is kept,
whose median nothing but half of the requests can move.

Only interactive requests count: who lets others go first has chosen to wait.
"""

import enum
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

MOST_KINDS = 32
"""Kinds of requests whose usual waits are told, those with most requests first."""

_STEPS = 4
"""Of a histogram, in a factor of two: 19 % each."""

_SHORTEST = 1e-6


class Figure(enum.StrEnum):
    """What is waited for.

    * ``FIRST_TOKEN``, of a text, from its arrival on. Beside it: answers that were being
      generated when it came. Work: tokens that were to be read by then, its own last.
    * ``TOKEN``: one after the first, on average. Beside it: answers that shared its runs,
      itself included, and one more where others were read or waited. Work: tokens of its context.
    * ``CALL``, of tensors, from its arrival on. Work: numbers in the inputs that waited or
      ran by then, its own last; nothing is beside it.
    """

    FIRST_TOKEN = "first_token"  # noqa: S105 - no password
    TOKEN = "token"  # noqa: S105 - the same
    CALL = "call"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """What requests share whose waits can be compared.

    Attributes:
        beside: Bits of the number of others; see :class:`Figure`.
        work: Bits of what was to be computed.
    """

    figure: Figure
    beside: int
    work: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """What one client waited for; numbers as :class:`Figure` has them."""

    figure: Figure
    beside: int
    work: int
    seconds: float

    @property
    def alike(self) -> Alike:
        """Whom it can be compared with."""
        return Alike(
            figure=self.figure, beside=self.beside.bit_length(), work=self.work.bit_length()
        )

    @property
    def step(self) -> int:
        """Its place in a histogram."""
        return round(_STEPS * math.log2(max(self.seconds, _SHORTEST)))


Histograms = dict[Alike, Counter[int]]
"""How often, by steps of :attr:`Wait.step`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsualWait:
    """How long requests alike usually wait.

    Attributes:
        count: Requests.
        seconds: Their median, within 10 %.
    """

    figure: Figure
    beside: int
    work: int
    count: int
    seconds: float


def usual_waits(now: Histograms, before: Histograms | None = None) -> tuple[UsualWait, ...]:
    """Return medians of what came after ``before``; the kinds with most requests first."""
    found = []
    for alike, steps in now.items():
        came = steps - (before or {}).get(alike, Counter())
        if came:
            found.append(
                UsualWait(
                    figure=alike.figure,
                    beside=alike.beside,
                    work=alike.work,
                    count=came.total(),
                    seconds=_median(came),
                )
            )
    found.sort(key=lambda wait: -wait.count)
    return tuple(found[:MOST_KINDS])


def _median(steps: Mapping[int, int]) -> float:
    half, passed = sum(steps.values()) / 2, 0
    for step in sorted(steps):
        passed += steps[step]
        if passed >= half:
            return float(2.0 ** (step / _STEPS))
    raise AssertionError("somebody has waited")
