"""A binding in another process: what is bound is told once, and read and written in place.

Arrays that lie in the session's :class:`BoundMemory` are told by their places, when these change.
Other inputs, small ones, are copied there for every run; other outputs cannot be bound.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from outpost_runtime.sessions.bound_memory import BoundMemory, Place
from outpost_runtime.tensors import Array

_BYTES = np.dtype(np.uint8)


class Copies:
    """Places for inputs that lie elsewhere: one for each name, since runs do not overlap."""

    def __init__(self, memory: BoundMemory) -> None:
        self._memory = memory
        self._by_name: dict[str, Array] = {}

    def copy(self, name: str, array: Array) -> Array:
        """Return a copy that can be bound, valid until the next one of this name."""
        room = self._by_name.get(name)
        if room is None or room.nbytes < array.nbytes:
            room = self._memory.zeros((2 * array.nbytes,), _BYTES)
            self._by_name[name] = room
        copied: Array = room[: array.nbytes].view(array.dtype).reshape(array.shape)
        copied[...] = array
        return copied


class ProcessBinding:
    """Inputs and outputs of a session in another process; see :class:`Binding`.

    Args:
        number: What the other process calls it by.
        copies: Of the session.
        run: Runs it there.

    Attributes:
        told_to: The process that knows all that :meth:`news` has said; whoever runs the binding
            sets it afterwards, and sets None where it does not know.
    """

    def __init__(
        self,
        number: int,
        memory: BoundMemory,
        copies: Copies,
        run: Callable[["ProcessBinding"], None],
    ) -> None:
        self._number = number
        self._memory = memory
        self._copies = copies
        self._run = run
        self._elsewhere: dict[str, Array] = {}
        self._inputs: dict[str, Place] = {}
        self._outputs: dict[str, Place] = {}
        self._changed: set[str] = set()
        self.told_to: object = None

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        place = self._place(name, array)
        if place is None:
            self._elsewhere[name] = array
        else:
            self._elsewhere.pop(name, None)
            self._set(self._inputs, name, place)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        place = self._place(name, array)
        if place is None:
            raise AssertionError(f"the memory bound to {name} must be the session's")
        self._set(self._outputs, name, place)

    def run(self) -> None:
        """See :class:`Binding`.

        Raises:
            UnavailableError: The process has ended, and comes back by itself; what was bound stays
                bound, and what the memory holds stays there but for what this run was to write.
        """
        self._run(self)

    def news(self, process: object) -> dict[str, Any]:
        """Copy what has to be copied; returns what a process has to be told before it runs this."""
        for name, array in self._elsewhere.items():
            place = self._place(name, self._copies.copy(name, array))
            assert place is not None  # noqa: S101 - the copy lies there
            self._set(self._inputs, name, place)
        known = process is self.told_to
        changed, self._changed = self._changed, set()
        return {
            "binding": self._number,
            "new": not known,
            "inputs": _those(self._inputs, changed) if known else self._inputs,
            "outputs": _those(self._outputs, changed) if known else self._outputs,
        }

    def _set(self, places: dict[str, Place], name: str, place: Place) -> None:
        if places.get(name) != place:
            places[name] = place
            self._changed.add(name)

    def _place(self, name: str, array: Array) -> Place | None:
        if not array.flags.c_contiguous:
            raise AssertionError(f"the memory bound to {name} must be C-contiguous")
        return self._memory.place_of(array)


def _those(places: dict[str, Place], names: set[str]) -> dict[str, Place]:
    return {name: places[name] for name in names if name in places}
