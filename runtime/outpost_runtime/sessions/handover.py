"""A graph that is being opened, told to the process that shall open it, and its answer.

Descriptors keep their numbers in a process that inherits them, so a message can name them.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from outpost_runtime.sessions.graph import Opening, Outside
from outpost_runtime.sessions.weight import described, weights_of
from outpost_runtime.tensors import NUMPY_TYPES, TensorSpec


def request_of(opening: Opening, label: str, threads: int | None) -> dict[str, Any]:
    """Return the message."""
    return {
        "path": opening.path,
        "pipe": opening.pipe,
        "tables": _outside(opening.tables),
        "apart": _outside(opening.apart),
        "label": label,
        "threads": threads,
    }


def specs_described(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    """Return what :func:`specs_of` takes."""
    return [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in specs]


def specs_of(tables: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the tensors that another process has described.

    Raises:
        LookupError, TypeError, ValueError: It has not.
    """
    return tuple(_spec(table["name"], table["datatype"], table["shape"]) for table in tables)


class InheritedGraph:
    """What a message says, as the graph that it was; see :class:`Graph`. It is opened once."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.label: str = request["label"]
        self._opening = Opening(
            path=request["path"],
            pipe=request["pipe"],
            tables=_outside_of(request["tables"]),
            apart=_outside_of(request["apart"]),
        )

    @contextmanager
    def opened(self) -> Iterator[Opening]:
        """See :class:`Graph`; whether what came was right is for the other process to say."""
        try:
            yield self._opening
        finally:
            for descriptor in self._opening.descriptors:
                os.close(descriptor)


def _spec(name: Any, datatype: Any, shape: Any) -> TensorSpec:
    sizes = tuple(None if size is None else operator.index(size) for size in shape)
    if not isinstance(name, str) or datatype not in NUMPY_TYPES:
        raise ValueError("a tensor that cannot be")
    return TensorSpec(name=name, datatype=datatype, shape=sizes)


def _outside(outside: Outside) -> dict[str, Any]:
    return {"weights": described(outside.weights), "descriptor": outside.descriptor}


def _outside_of(table: Mapping[str, Any]) -> Outside:
    return Outside(weights=weights_of(table["weights"]), descriptor=table["descriptor"])
