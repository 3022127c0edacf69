"""Several requests' tensors in one run's, and the run's outputs back to them. Pure."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from outpost_runtime.errors import ExecutionError
from outpost_runtime.tensor.request import Job, Outputs
from outpost_runtime.tensors import Array


def join(jobs: Sequence[Job]) -> Mapping[str, Array]:
    """Stack inputs along the first dimension; shorter second dimensions are filled with zeros."""
    if len(jobs) == 1:
        return jobs[0].feeds
    longest = max(job.length for job in jobs)
    return {
        name: np.concatenate([_filled(job.feeds[name], longest) for job in jobs])
        for name in jobs[0].feeds
    }


def split(
    outputs: Outputs, jobs: Sequence[Job], *, per_token: Collection[str] = ()
) -> list[Outputs]:
    """Return each request's rows.

    Args:
        per_token: Outputs with an entry for every token, which are cut to a request's own
            length where the run was filled up.

    Raises:
        ExecutionError: An output has not as many rows as went in.
    """
    if len(jobs) == 1:
        return [outputs]
    rows = sum(job.rows for job in jobs)
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise ExecutionError(f"The model made {array.shape} of '{name}' from {rows} rows.")
    parts: list[Outputs] = []
    first = 0
    for job in jobs:
        here = slice(first, first + job.rows)
        length = slice(job.length or None)
        parts.append(
            {n: a[here, length] if n in per_token else a[here] for n, a in outputs.items()}
        )
        first += job.rows
    return parts


def _filled(array: Array, longest: int) -> Array:
    if not longest or array.shape[1] == longest:
        return array
    more = [(0, 0)] * array.ndim
    more[1] = (0, longest - array.shape[1])
    return np.pad(array, more)
