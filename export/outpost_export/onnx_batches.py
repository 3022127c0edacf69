"""Whether requests to a model can share a run.

Stacked along the first dimension, each must get what it gets alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from outpost_runtime.errors import OutpostError
from outpost_runtime.golden import differences
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array

from outpost_export.errors import RecipeError
from outpost_export.onnx_inputs import Feeds
from outpost_export.onnx_source import Size

_Outputs = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """What was found out.

    Attributes:
        most: Rows of a run; 0 if requests cannot share one.
        difference: Relative, of shared runs from single ones; None if none was tried.
        reason: Why requests cannot share a run, or None.
    """

    most: int
    difference: float | None = None
    reason: str | None = None


def why_never(
    session: Session, sizes: Mapping[str, tuple[Size, ...]], *, stateful: bool
) -> str | None:
    """Return why a model's signature alone excludes shared runs, or None."""
    if stateful:
        return "it carries states from run to run"
    for spec in (*session.inputs, *session.outputs):
        if spec.shape[:1] != (None,):
            return f"the first dimension of '{spec.name}' is not free"
    names = {dimensions[0] for dimensions in sizes.values()} - {None}
    if len(names) > 1:
        return "the first dimensions of its inputs have different names"
    return None


def try_batches(session: Session, cases: Sequence[Feeds], *, most: int, limit: float) -> Batches:
    """Run cases together with others, and up to ``most`` rows.

    Args:
        session: Of a model that :func:`why_never` does not exclude.
        limit: Largest relative difference from the same rows alone.

    Raises:
        RecipeError: A case has more rows than ``most``.
    """
    for feeds in cases:
        if _rows(feeds) > most:
            raise RecipeError(
                f"The golden inputs have {_rows(feeds)} rows; max_batch is {most}.",
                hint="Set a larger max_batch in a recipe, or 0.",
            )
        if len({len(array) for array in feeds.values()}) > 1:
            return Batches(most=0, reason="its inputs have different numbers of rows")
    if all(_alike(feeds, _neighbour(feeds)) for feeds in cases):
        return Batches(most=0, reason="inputs that are all alike do not show it")
    try:
        difference = differences(_pairs(session, cases, most))["relative_difference"]
    except (OutpostError, ValueError) as error:
        return Batches(most=0, reason=f"a run of several fails ({error})")
    if not np.isfinite(difference):
        return Batches(most=0, reason="its answers are no numbers in a run of several")
    if difference > limit:
        reason = f"its answers depend on what else is in a run (by {difference:.3g})"
        return Batches(most=0, difference=difference, reason=reason)
    return Batches(most=most, difference=difference)


def _pairs(
    session: Session, cases: Sequence[Feeds], most: int
) -> Iterator[tuple[_Outputs, _Outputs]]:
    for feeds in cases:
        neighbour, rows = _neighbour(feeds), _rows(feeds)
        if 2 * rows <= most:
            together = session.run(_stacked(feeds, neighbour))
            yield _cut(together, slice(rows)), session.run(feeds)
            yield _cut(together, slice(rows, None)), session.run(neighbour)
    feeds = min(cases, key=lambda case: sum(array.size for array in case.values()))
    rows, end = _rows(feeds), most - most % _rows(feeds)
    full = session.run({name: _filled_up(array, most) for name, array in feeds.items()})
    alone = session.run(feeds)
    yield _cut(full, slice(rows)), alone
    yield _cut(full, slice(end - rows, end)), alone


def _neighbour(feeds: Feeds) -> Feeds:
    """Return the same values in another order: what else could be in the run."""
    return {
        name: np.ascontiguousarray(array.reshape(-1)[::-1]).reshape(array.shape)
        for name, array in feeds.items()
    }


def _alike(first: Feeds, second: Feeds) -> bool:
    return all(np.array_equal(array, second[name]) for name, array in first.items())


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _stacked(first: Feeds, second: Feeds) -> Feeds:
    return {name: np.concatenate([array, second[name]]) for name, array in first.items()}


def _filled_up(array: Array, rows: int) -> Array:
    return array[np.arange(rows) % len(array)]


def _cut(outputs: _Outputs, rows: slice) -> _Outputs:
    return {name: array[rows] for name, array in outputs.items()}
