"""What models with a state remember between the requests of a sequence. No clock: now comes in.

Rules:

1. A sequence begins with a request that says so, from zeros, and ends with one that says so.
2. A request of an unknown sequence that does not begin it is refused: its state is gone.
3. A sequence that has been silent for ``idle_seconds`` may be forgotten to make room; while
   there is no room, new ones are refused.
4. A request that failed leaves the state as it was before.
5. A place is set apart when the first run of a sequence begins, not when it ends: runs that
   go on at the same time cannot take the same one.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from outpost_runtime.errors import BusyError, InvalidInputError
from outpost_runtime.interface import StateSpec
from outpost_runtime.tensor.request import Outputs, SequenceStep
from outpost_runtime.tensors import Array, TensorSpec

IDLE_SECONDS = 60.0
MOST_SEQUENCES = 1024
MOST_BYTES = 64 << 20
MOST_ROWS = 32
"""That a free dimension of a state can have."""


class Sequences:
    """The states of one model's sequences.

    Args:
        states: What is carried.
        inputs: The model's inputs, states included.
        most: Sequences that are remembered at once.
    """

    def __init__(
        self,
        states: Sequence[StateSpec],
        inputs: Sequence[TensorSpec],
        *,
        most: int = MOST_SEQUENCES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._states = states
        self._specs = {spec.name: spec for spec in inputs}
        self._most = most
        self._idle_seconds = idle_seconds
        self._kept: OrderedDict[int | str, tuple[float, Outputs]] = OrderedDict()
        self._set_apart: dict[int | str, int] = {}  # bytes, while the first run goes on

    def __len__(self) -> int:
        return len(self._kept)

    def before(self, step: SequenceStep, feeds: Mapping[str, Array], now: float) -> Outputs:
        """Return the state inputs of a request's run; :meth:`after` or :meth:`failed` follows.

        Raises:
            InvalidInputError: The sequence is not known and does not begin.
            BusyError: There is no room for another one.
        """
        if step.start:
            shapes = {state.input: self._shape(state, feeds) for state in self._states}
            needed = sum(
                math.prod(shape) * self._specs[name].dtype.itemsize
                for name, shape in shapes.items()
            )
            if step.id not in self._kept:
                self._make_room(now, needed)
                self._set_apart[step.id] = needed
            return {name: np.zeros(s, self._specs[name].dtype) for name, s in shapes.items()}
        if step.id not in self._kept:
            raise InvalidInputError(
                f"The sequence {step.id!r} is not known here.",
                hint="Begin it with sequence_start; a silent or ended one is forgotten.",
            )
        return self._kept[step.id][1]

    def after(self, step: SequenceStep, outputs: Outputs, now: float) -> Outputs:
        """Keep the state outputs of a run; returns the others."""
        kept = {state.input: outputs[state.output] for state in self._states}
        self._set_apart.pop(step.id, None)
        self._kept.pop(step.id, None)
        if not step.end:
            self._kept[step.id] = now, kept
        names = {state.output for state in self._states}
        return {name: array for name, array in outputs.items() if name not in names}

    def failed(self, step: SequenceStep) -> None:
        """Take note that a run gave nothing to keep."""
        self._set_apart.pop(step.id, None)

    def _make_room(self, now: float, needed: int) -> None:
        while self._kept and now - next(iter(self._kept.values()))[0] > self._idle_seconds:
            self._kept.popitem(last=False)
        kept = sum(a.nbytes for _, states in self._kept.values() for a in states.values())
        kept += sum(self._set_apart.values())
        count = len(self._kept) + len(self._set_apart)
        if count >= self._most or kept + needed > MOST_BYTES:
            raise BusyError(
                f"{count} sequences are open already.",
                hint="End some with sequence_end, or try again later.",
                retry_after=self._idle_seconds,
            )

    def _shape(self, state: StateSpec, feeds: Mapping[str, Array]) -> list[int]:
        sizes = [feeds[n].shape[0] for n in self._specs if n in feeds and feeds[n].ndim]
        rows = sizes[0] if sizes else 1
        if rows > MOST_ROWS:
            raise InvalidInputError(
                f"A sequence has at most {MOST_ROWS} rows; this one has {rows}."
            )
        # A free dimension of a state is the batch's, wherever it stands.
        return [rows if size is None else size for size in self._specs[state.input].shape]
