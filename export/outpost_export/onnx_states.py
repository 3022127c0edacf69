"""States: what a model carries from run to run, as its recipe says.

A sequence begins with zeros. A free dimension of a state is the batch's, as the runtime has it:
the first dimension of the first other input that has dimensions.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
from outpost_runtime.interface import StateSpec
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import TensorSpec

from outpost_export.errors import RecipeError
from outpost_export.onnx_inputs import Feeds, answer

SHORTEST_SEQUENCE = 3


def check_states(
    states: Sequence[StateSpec], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Refuse states that the model cannot carry.

    Raises:
        RecipeError: A name is unknown or repeats, or input and output do not fit each other.
    """
    given = {spec.name: spec for spec in inputs}
    made = {spec.name: spec for spec in outputs}
    for state in states:
        for name, known, side in ((state.input, given, "input"), (state.output, made, "output")):
            if name not in known:
                raise RecipeError(
                    f"The recipe has a state '{name}', which is no {side} of the model.",
                    hint=f"Its {side}s: {', '.join(known)}.",
                )
        source, target = made[state.output], given[state.input]
        if source.datatype != target.datatype or not _may_fit(source, target):
            raise RecipeError(f"'{source}' cannot be carried into '{target}'.")
        if target.datatype == "BYTES":
            raise RecipeError(f"The state '{target}' is no number; states begin with zeros.")
    carried = {state.input for state in states}
    if len(carried) < len(states):
        raise RecipeError("The recipe has two states for the same input.")
    if carried == given.keys() or {state.output for state in states} == made.keys():
        raise RecipeError("The model needs an input and an output that are no states.")


def with_zeros(feeds: Feeds, states: Sequence[StateSpec], specs: Sequence[TensorSpec]) -> Feeds:
    """Return a case with zeros for every state that it does not have yet."""
    zeros = {
        spec.name: np.zeros(_shape(spec, _rows(feeds, states, specs)), spec.dtype)
        for spec in specs
        if any(spec.name == state.input for state in states)
    }
    return zeros | feeds


def steps(session: Session, cases: Sequence[Feeds], states: Sequence[StateSpec]) -> list[Feeds]:
    """Run cases as the steps of one sequence; return them with the states that each began with.

    Fewer cases than :data:`SHORTEST_SEQUENCE` are repeated. A case that has another number of
    rows than the case before begins a sequence.

    Raises:
        ConversionError: The model does not answer a step.
    """
    taken: list[Feeds] = []
    carried: Feeds = {}
    rows = None
    for case in islice(cycle(cases), max(len(cases), SHORTEST_SEQUENCE)):
        before, rows = rows, _rows(case, states, session.inputs)
        feeds = with_zeros((carried if rows == before else {}) | case, states, session.inputs)
        taken.append(feeds)
        outputs = answer(session, feeds)
        carried = {state.input: outputs[state.output] for state in states}
    return taken


def _rows(feeds: Feeds, states: Sequence[StateSpec], specs: Sequence[TensorSpec]) -> int:
    carried = {state.input for state in states}
    others = (feeds[spec.name].shape for spec in specs if spec.name not in carried)
    return next((shape[0] for shape in others if shape), 1)


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return tuple(rows if size is None else size for size in spec.shape)


def _may_fit(source: TensorSpec, target: TensorSpec) -> bool:
    return len(source.shape) == len(target.shape) and all(
        None in pair or pair[0] == pair[1] for pair in zip(source.shape, target.shape, strict=True)
    )
