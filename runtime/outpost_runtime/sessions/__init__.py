"""Session: one opened model on one execution provider, tensors in, tensors out.

This file is the contract; every other file of the folder is one way to keep it.
"""

from collections.abc import Mapping
from typing import Protocol

from outpost_runtime.tensors import Array, TensorSpec


class Binding(Protocol):
    """Inputs and outputs fixed to memory that stays, so that a run allocates nothing."""

    def feed(self, name: str, array: Array) -> None:
        """Put one input to other memory or another shape; the rest stays bound."""

    def put(self, name: str, array: Array) -> None:
        """Let one output be written to other memory or in another shape."""

    def run(self) -> None:
        """Run once: read the bound inputs, write the bound outputs.

        Raises:
            ExecutionError: The provider failed.
        """


class Session(Protocol):
    """One opened model; its engine owns it.

    :meth:`run` may be called by several threads at once; bindings belong to one thread.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model expects, in the model's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives, in the model's order."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return newly allocated outputs by name.

        Raises:
            InvalidInputError: The feeds do not match :attr:`inputs`.
            ExecutionError: The provider failed.
        """

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """Fix C-contiguous arrays as inputs and outputs; the binding keeps them alive.

        A session in another process binds as outputs only what lies in its
        :class:`~outpost_runtime.sessions.bound_memory.BoundMemory`, and copies other inputs for
        every run. An output may share memory with an input where the model allows that
        (``past_key_values`` and ``present`` of ``GroupQueryAttention``).
        """

    def close(self) -> None:
        """Free the model; the session and its bindings are dead afterwards."""
