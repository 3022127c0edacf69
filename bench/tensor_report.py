"""What a run of servers says: medians, ratios, and whose answers are equal. Pure."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from bench.report import Measure
from bench.tensor_rounds import Cell, Figures, Measured, Plan
from bench.tensor_servers import OURS

EQUAL_ANSWERS = 1e-5
"""A server whose values differ by more from ONNX Runtime's own does not compute the same."""

_MILLISECONDS = 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a run says.

    Attributes:
        names: Of everybody, ours first.
        models: Their names.
    """

    plan: Plan
    names: Sequence[str]
    models: Sequence[str]
    measured: Measured

    @property
    def peers(self) -> list[str]:
        """Everybody else's servers."""
        return [name for name in self.names if name != OURS]

    @property
    def equal_peers(self) -> list[str]:
        """The peers whose answers are the same."""
        return [name for name in self.peers if self.is_equal(name)]

    def is_equal(self, name: str) -> bool:
        """Whether a server's answers are the same as ONNX Runtime's."""
        return max(self.measured.differences[name].values()) <= EQUAL_ANSWERS

    def cells(self, model: str) -> list[Cell]:
        """Return what was asked of a model's servers."""
        return [Cell(model=model, callers=callers) for callers in self.plan.callers]

    def speeds(self, cell: Cell) -> list[Measure]:
        """Return what was measured in rounds: requests/s, then waits in milliseconds."""
        callers = "1 caller" if cell.callers == 1 else f"{cell.callers} callers"
        return [
            self._measure(f"{callers}, requests/s", cell, "rate", 1),
            self._measure(f"{callers}, p50 ms", cell, "median", _MILLISECONDS),
            self._measure(f"{callers}, p99 ms", cell, "slowest", _MILLISECONDS),
        ]

    def memory(self) -> Measure:
        """Return what the servers had resident at most."""
        values = {name: [self.measured.peak_megabytes[name]] for name in self.names}
        return Measure(title="peak memory, MB", values=values, smaller_is_better=True, ours=OURS)

    def generator_seconds(self) -> list[float]:
        """Return what the load generator took of a processor per request, in every round."""
        return [figures.generator for _, _, rounds in self._all() for figures in rounds]

    def json(self) -> str:
        """Return everything for programs, every round's values included."""
        found = {
            "plan": asdict(self.plan),
            "differences": self.measured.differences,
            "peak_megabytes": self.measured.peak_megabytes,
            "figures": [
                {"server": name} | asdict(cell) | {"rounds": [asdict(each) for each in rounds]}
                for name, cell, rounds in self._all()
            ],
        }
        return json.dumps(found, indent=1) + "\n"

    def _all(self) -> Iterator[tuple[str, Cell, list[Figures]]]:
        for name in self.names:
            for cell, rounds in self.measured.figures[name].items():
                yield name, cell, rounds

    def _measure(self, title: str, cell: Cell, attribute: str, scale: float) -> Measure:
        nothing = [math.nan] * self.plan.rounds
        found = {name: self.measured.figures[name].get(cell) for name in self.names}
        values = {
            name: [scale * getattr(each, attribute) for each in rounds] if rounds else nothing
            for name, rounds in found.items()
        }
        smaller = attribute != "rate"
        return Measure(title=title, values=values, smaller_is_better=smaller, ours=OURS)
