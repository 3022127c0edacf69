"""A base's graph for adapters, run as the plain one: rows choose, everything else is the same.

The arrays come from the bank (``adapters.py``, which has the rules); a binding is fed
with other ones only when the span of its rows' adapters changes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from outpost_runtime.errors import BundleError
from outpost_runtime.sessions import Binding, Session
from outpost_runtime.tensors import Array, TensorSpec
from outpost_runtime.text.adapters import ROWS, AdapterBank


class AdapterBinding:
    """A binding of the adapter graph whose rows choose; made by :meth:`AdapterSession.bind`."""

    def __init__(self, binding: Binding, bank: AdapterBank, adapters: Sequence[int | None]) -> None:
        self._binding = binding
        self._bank = bank
        self._rows = np.zeros(len(adapters), np.int64)
        self._span = range(0)
        binding.feed(ROWS, self._rows)
        self.choose(adapters)

    def choose(self, adapters: Sequence[int | None]) -> None:
        """Say which adapter each row has from the next run on; None is none.

        Costs microseconds while the span stays, and two milliseconds (Gemma 3 270M) when it
        changes, which it does when a row begins or ends and not from token to token.
        """
        if len(adapters) != len(self._rows):
            raise AssertionError(f"{len(adapters)} adapters for {len(self._rows)} rows")
        span = self._bank.span(adapters)
        if span != self._span:
            for name, array in self._bank.arrays(span).items():
                self._binding.feed(name, array)
            self._span = span
        self._rows[:] = self._bank.rows(adapters, span)

    def feed(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.feed(name, array)

    def put(self, name: str, array: Array) -> None:
        """See :class:`Binding`."""
        self._binding.put(name, array)

    def run(self) -> None:
        """See :class:`Binding`."""
        self._binding.run()


class AdapterSession:
    """The adapter graph, with the signature of the plain one; a :class:`Session`.

    Args:
        session: The base's adapter graph, opened; it is closed with this one.
        everywhere: The adapter that every row has until its binding's
            :meth:`AdapterBinding.choose`; None is none.

    Raises:
        BundleError: The graph is not one for adapters of this base.
    """

    def __init__(
        self, session: Session, bank: AdapterBank, *, everywhere: int | None = None
    ) -> None:
        needed = set(bank.specs)
        if missing := needed - set(session.inputs):
            wanted = min(str(spec) for spec in missing)
            raise BundleError(f"The base's graph for adapters lacks the input {wanted}.")
        self._session = session
        self._bank = bank
        self._everywhere = everywhere
        self._inputs = tuple(spec for spec in session.inputs if spec not in needed)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the plain graph."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the plain graph."""
        return self._session.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Session`."""
        chosen = self._chosen(feeds)
        span = self._bank.span(chosen)
        own: dict[str, Array] = {ROWS: self._bank.rows(chosen, span)}
        return self._session.run({**feeds, **own, **self._bank.arrays(span)})

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> AdapterBinding:
        """See :class:`Session`; the first dimension of the inputs is the batch."""
        return AdapterBinding(self._session.bind(inputs, outputs), self._bank, self._chosen(inputs))

    def close(self) -> None:
        """See :class:`Session`."""
        self._session.close()

    def _chosen(self, inputs: Mapping[str, Array]) -> list[int | None]:
        rows: int = next(iter(inputs.values())).shape[0]
        return [self._everywhere] * rows
