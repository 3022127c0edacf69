"""What a model's runs take beside its weights, measured once on this device.

No file says it: it depends on the graph, on what the provider fuses, and on the largest
batch. So the first load of a bundle runs a few rows of the greatest length, and every later
one knows before it opens anything. Kept as ``STORE/measured/<digest>.json``; who deletes
that only has it measured again.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from outpost_runtime.bundle import write_durably
from outpost_runtime.documents import canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.interface import EmbeddingInterface, TensorInterface
from outpost_runtime.tensors import Array, TensorSpec

_MEASURED_ROWS = 4
"""Intermediate results grow with the rows (MiniLM: 14.1 MB each, 4 to 32 of them, within 1 %)."""

_MOST_BYTES = 1 << 12
_LOG = logging.getLogger(__name__)


class Footprints:
    """What has been measured, by bundle.

    Args:
        folder: Made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, digest: str) -> int | None:
        """Return the bytes that one run takes at most, or None if nobody has measured."""
        try:
            with self._path(digest).open("rb") as file:
                reader = parse_json_object(file.read(_MOST_BYTES), path=f"measured/{digest}")
            version, found = reader.string("onnxruntime"), reader.integer("run_bytes")
            reader.end()
        except (OSError, InvalidInputError):
            return None
        return found if version == onnxruntime.__version__ and found >= 0 else None

    def keep(self, digest: str, run_bytes: int) -> None:
        """Keep a measurement; a store that cannot be written costs another one, no more."""
        measured = {"onnxruntime": onnxruntime.__version__, "run_bytes": run_bytes}
        try:
            self._folder.mkdir(exist_ok=True)
            write_durably(self._path(digest), canonical_json(measured))
        except OSError as error:
            _LOG.warning("what a run takes could not be kept: %s", error)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"


def measure_run(
    interface: EmbeddingInterface | TensorInterface,
    feeds: Mapping[str, Array],
    run: Callable[[dict[str, Array]], object],
    process_id: int,
) -> int:
    """Return the bytes that the largest run that clients may ask for takes.

    Where the interface sets no limit, as for the sizes of pictures, it is a run of ``feeds``; what
    larger ones take is counted up from it: see :func:`measured_numbers`.

    Args:
        feeds: Golden inputs; nothing must have been run before.
        process_id: Where runs take their memory.
    """
    rows = min(interface.max_batch, _MEASURED_ROWS)
    before = resident_bytes(process_id)
    run(dict(feeds))
    if rows:  # else the dimensions have other meanings
        run(_enlarged(feeds, interface, rows))
    taken = max(resident_bytes(process_id) - before, 0)
    return taken * interface.max_batch // rows if rows else taken


def measured_numbers(interface: TensorInterface, feeds: Mapping[str, Array]) -> int:
    """Return how many numbers clients send for the run whose bytes :func:`measure_run` tells.

    At least one: golden inputs may be empty.
    """
    kept = {state.input for state in interface.states}
    shapes = [
        _enlarged_shape(spec, feeds[spec.name], interface, interface.max_batch)
        for spec in interface.inputs
        if spec.name not in kept
    ]
    return max(sum(map(math.prod, shapes)), 1)


def has_open_sizes(interface: TensorInterface) -> bool:
    """Whether clients choose sizes that the interface does not limit."""
    limits = (interface.max_batch, interface.max_sequence)
    return any(
        size is None and not (axis < len(limits) and limits[axis])
        for spec in interface.inputs
        for axis, size in enumerate(spec.shape)
    )


def resident_bytes(process_id: int) -> int:
    """Return what a process has in memory, see proc_pid_statm(5)."""
    pages = Path(f"/proc/{process_id}/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _enlarged(
    feeds: Mapping[str, Array], interface: EmbeddingInterface | TensorInterface, rows: int
) -> dict[str, Array]:
    """Return feeds of more rows, and as long as they may be: by repetition, of known values."""
    return {
        spec.name: np.resize(
            feeds[spec.name], _enlarged_shape(spec, feeds[spec.name], interface, rows)
        )
        for spec in interface.inputs
    }


def _enlarged_shape(
    spec: TensorSpec, array: Array, interface: EmbeddingInterface | TensorInterface, rows: int
) -> tuple[int, ...]:
    if not rows:  # the dimensions have other meanings
        return array.shape
    shape = [rows, *array.shape[1:]]
    if isinstance(interface, EmbeddingInterface):
        length: int | None = interface.max_tokens
    else:
        length = interface.max_sequence
    if length is not None and spec.shape[1:2] == (None,):
        shape[1] = length
    return tuple(shape)
