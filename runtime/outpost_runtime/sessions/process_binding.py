"""A binding in another process: what is bound is told once, and read and written in place.

Arrays that lie in the session's :class:`BoundMemory` are told by their places. Other inputs, small
ones, are sent with every run; other outputs cannot be bound.
"""

from collections.abc import Callable
from typing import Any

from outpost_runtime.sessions.bound_memory import BoundMemory, Place
from outpost_runtime.tensors import Array


class ProcessBinding:
    """Inputs and outputs of a session in another process; see :class:`Binding`.

    Args:
        number: What the other process calls it by.
        run: Runs it there.

    Attributes:
        sent: The inputs that are sent with every run.
        told_to: The process that knows all that :meth:`news` has said; whoever runs the binding
            sets it afterwards, and sets None where it does not know.
    """

    def __init__(
        self, number: int, memory: BoundMemory, run: Callable[["ProcessBinding"], None]
    ) -> None:
        self._number = number
        self._memory = memory
        self._run = run
        self._inputs: dict[str, Place] = {}
        self._outputs: dict[str, Place] = {}
        self._changed: set[str] = set()
        self.sent: dict[str, Array] = {}
        self.told_to: object = None

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        place = self._place(name, array)
        if place is None:
            self._inputs.pop(name, None)
            self.sent[name] = array
        else:
            self.sent.pop(name, None)
            self._inputs[name] = place
            self._changed.add(name)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        place = self._place(name, array)
        if place is None:
            raise AssertionError(f"the memory bound to {name} must be the session's")
        self._outputs[name] = place
        self._changed.add(name)

    def run(self) -> None:
        """See :class:`Binding`.

        Raises:
            UnavailableError: The process has ended, and comes back by itself; what was bound stays
                bound, and what the memory holds stays there but for what this run was to write.
        """
        self._run(self)

    def news(self, process: object) -> dict[str, Any]:
        """Return what a process has to be told before it can run this."""
        changed = None if process is not self.told_to else self._changed
        self._changed = set()
        return {
            "binding": self._number,
            "new": changed is None,
            "inputs": _those(self._inputs, changed),
            "outputs": _those(self._outputs, changed),
        }

    def _place(self, name: str, array: Array) -> Place | None:
        if not array.flags.c_contiguous:
            raise AssertionError(f"the memory bound to {name} must be C-contiguous")
        return self._memory.place_of(array)


def _those(places: dict[str, Place], names: set[str] | None) -> dict[str, Place]:
    if names is None:
        return places
    return {name: places[name] for name in names if name in places}
