"""The classification extension: the largest elements of an output, as text. Pure."""

from collections.abc import Sequence

import numpy as np

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import of_elements
from outpost_runtime.tensors import Array


def classify(
    name: str, array: Array, classes: int, labels: Sequence[str], *, batched: bool
) -> Array:
    """Return the largest elements as ``value:index`` or ``value:index:label``, largest first.

    Args:
        array: Numbers; with ``batched``, [batch, …], of which every row is ranked by itself.
        classes: How many of them; all, if there are fewer.
        labels: Names by index; where there are fewer, the name is left out.

    Returns:
        BYTES, [classes] or [batch, classes].

    Raises:
        InvalidInputError: The output has no numbers to rank.
    """
    if array.dtype in (np.object_, np.bool_) or not array.size:
        raise InvalidInputError(f"The output '{name}' has no numbers to classify by.")
    rows = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    count = min(classes, rows.shape[1])
    elements = [_texts(row, count, labels) for row in rows]
    shape = (len(rows), count) if batched else (count,)
    return of_elements(shape, [text for row in elements for text in row])


def _texts(row: Array, count: int, labels: Sequence[str]) -> list[bytes]:
    # A stable order of equal values: the lower index first.
    top = np.argsort(-row.astype(np.float64), kind="stable")[:count]
    return [_text(row[index].item(), int(index), labels).encode() for index in top]


def _text(value: float, index: int, labels: Sequence[str]) -> str:
    number = f"{value:f}" if isinstance(value, float) else str(value)
    return f"{number}:{index}:{labels[index]}" if index < len(labels) else f"{number}:{index}"
