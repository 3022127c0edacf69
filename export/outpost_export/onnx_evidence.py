"""Evidence for ONNX files: the model as it is served against the model as it is written.

There is nothing that an ONNX file could be compared with but itself. What can go wrong is what
the runtime makes of it: ONNX Runtime folds, fuses and reorders a graph when it opens it. So
every input is answered by the optimized graph, twice, and by the graph as it is written, and
the optimized one's answers become the golden outputs, which a device must reproduce.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from outpost_runtime.golden import differences
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array

from outpost_export.errors import EvidenceError
from outpost_export.onnx_inputs import HINT_GOLDEN, Feeds, answer
from outpost_export.progress import Reporter

Outputs = Mapping[str, Array]


def measure(
    served: Session, as_written: Session, cases: Sequence[Feeds], reporter: Reporter
) -> tuple[dict[str, float], dict[str, Array]]:
    """Measure a model on some inputs.

    Args:
        served: The model, opened as it will be served.
        as_written: The same, with no optimization.

    Returns:
        Figures by name (see gate.py), and the golden tensors.

    Raises:
        ConversionError: The model refuses an input, or fails on it.
        EvidenceError: An answer is not finite, or its shape is not always the same.
    """
    got: list[Outputs] = []
    expected: list[Outputs] = []
    again: list[Outputs] = []
    with reporter.step("Comparing with the model as it is written", total=len(cases)) as did:
        for feeds in cases:
            for session, answers in ((served, got), (as_written, expected), (served, again)):
                answers.append(answer(session, feeds))
            did(1)
    for outputs in (*got, *expected):
        _check_finite(outputs)
    figures = _differences(got, expected, "when ONNX Runtime optimizes the model")
    repeats = _differences(again, got, "when the same input is given again")
    figures["repeat_difference"] = repeats["relative_difference"]
    figures["evaluated_inputs"] = float(len(cases))
    return figures, _golden(cases, got)


def _check_finite(outputs: Outputs) -> None:
    for name, array in outputs.items():
        if array.dtype.kind in "OSUbiu":
            continue
        if not np.isfinite(array.astype(np.float64)).all():
            raise EvidenceError(
                f"The model's output '{name}' has values that are no finite numbers.",
                hint=HINT_GOLDEN,
            )


def _differences(
    got: Sequence[Outputs], expected: Sequence[Outputs], when: str
) -> dict[str, float]:
    try:
        return differences(zip(got, expected, strict=True))
    except ValueError as error:
        raise EvidenceError(f"The outputs have other shapes {when}.", hint=HINT_GOLDEN) from error


def _golden(cases: Sequence[Feeds], answers: Sequence[Outputs]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for index, sides in enumerate(zip(cases, answers, strict=True)):
        for side, values in zip(("inputs", "outputs"), sides, strict=True):
            tensors |= {f"{index}/{side}/{name}": array for name, array in values.items()}
    return tensors
