"""A language model's runs over its key/value memory: prefill, decode, verify.

Everything that a run touches is allocated once, touched once and bound by pointer:
a freshly allocated logits buffer of a large vocabulary costs more in page faults
than the model itself. ``past_key_values`` and ``present`` are bound to the same
memory, so a run appends to it in place.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import BundleError
from outpost_runtime.sessions import Binding, Session
from outpost_runtime.tensors import Allocate, Array, TensorSpec
from outpost_runtime.text.adapter_session import AdapterBinding, AdapterSession
from outpost_runtime.text.drafter import LONGEST_DRAFT
from outpost_runtime.text.memory import KeyValueMemory
from outpost_runtime.text.pace import LARGEST_CHUNK

_PAST = "past_key_values."
_PRESENT = "present."
_NUM_LOGITS = "num_logits_to_keep"


class Decoder:
    """One language model's memory, bound to its session.

    Args:
        session: A decoder graph with ``input_ids`` and ``attention_mask`` [batch, n] int64,
            ``num_logits_to_keep`` [1] int64, ``past_key_values.*`` and ``present.*``
            [batch, heads, length, head_dim], and ``logits`` [batch, kept, vocabulary] float32
            of each row's last ``kept`` tokens.
        rows: Sequences that can live at once.
        max_length: Tokens that one row can hold.
        blocks: Blocks of the prefix cache.
        allocate: Of key/value rows and logits, which are bound in place everywhere.

    Raises:
        BundleError: The graph is not of that kind.
    """

    def __init__(
        self,
        session: Session,
        *,
        rows: int,
        max_length: int,
        blocks: int = 0,
        allocate: Allocate = np.zeros,
    ) -> None:
        _check_signature(session)
        self.rows = rows
        self.max_length = max_length
        self.vocabulary_size = _vocabulary_size(session)
        self.memory = KeyValueMemory(
            _key_value_inputs(session),
            rows=rows,
            row_tokens=max_length,
            blocks=blocks,
            allocate=allocate,
        )
        # `ones` and not `empty`: it writes every page, so that no run has to.
        self._mask = np.ones(rows * max_length, np.int64)
        self._positions = np.arange(max_length)
        self._ids = np.ones(max(rows, LARGEST_CHUNK + 1), np.int64)
        self._kept = np.arange(LONGEST_DRAFT + 2)
        shape = max(rows, LONGEST_DRAFT + 1), self.vocabulary_size
        self._logits: NDArray[np.float32] = allocate(shape, np.dtype(np.float32))
        self._logits.fill(1)
        self._session = session
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._adapter_session: AdapterSession | None = None
        self._adapter_bindings: dict[tuple[int, int], AdapterBinding] = {}

    @property
    def memory_bytes(self) -> int:
        """Bytes of all buffers together."""
        buffers = (self._mask, self._positions, self._ids, self._logits)
        return self.memory.bytes + sum(buffer.nbytes for buffer in buffers)

    def attach(self, session: AdapterSession) -> None:
        """Use a graph of the same weights for runs in which a row has an adapter.

        Runs without one use the plain graph and pay nothing. Both work on the same memory.
        """
        _check_signature(session)
        self._adapter_session = session
        self._adapter_bindings.clear()

    def prefill(
        self,
        row: int,
        tokens: Sequence[int],
        past: int,
        *,
        keep: int = 1,
        adapter: int | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens to a row behind the ``past`` that it holds.

        Args:
            tokens: At most :data:`LARGEST_CHUNK` + 1 ids.
            keep: Of how many of the last tokens logits are wanted: 0 is cheapest, and at
                most :data:`LONGEST_DRAFT` + 1.
            adapter: Index of the row's adapter.

        Returns:
            [keep, vocabulary] logits: a view, valid until the next run.
        """
        count, total = len(tokens), past + len(tokens)
        self._ids[:count] = tokens
        self._mask[:total] = 1
        binding = self._bound(row, [adapter])
        binding.feed("input_ids", self._ids[:count].reshape(1, count))
        binding.feed("attention_mask", self._mask[:total].reshape(1, total))
        binding.feed(_NUM_LOGITS, self._kept[keep : keep + 1])
        logits = self._logits[:keep]
        binding.put("logits", logits.reshape(1, keep, self.vocabulary_size))
        binding.run()
        return logits

    def decode(
        self,
        tokens: Sequence[int],
        lengths: Sequence[int],
        adapters: Sequence[int | None] | None = None,
    ) -> NDArray[np.float32]:
        """Append one token to each of the leading rows, as one batch.

        Args:
            tokens: The token of row 0, 1, …; at most ``rows``.
            lengths: Tokens that each of these rows holds already.
            adapters: Index of each row's adapter; None is nobody has one.

        Returns:
            [len(tokens), vocabulary] logits: a view, valid until the next run.
        """
        rows, total = len(tokens), max(lengths) + 1
        self._ids[:rows] = tokens
        mask = self._mask[: rows * total].reshape(rows, total)
        np.less_equal(self._positions[:total], np.array(lengths)[:, None], out=mask)
        binding = self._bound(0, adapters or [None] * rows)
        binding.feed("input_ids", self._ids[:rows].reshape(rows, 1))
        binding.feed("attention_mask", mask)
        binding.feed(_NUM_LOGITS, self._kept[1:2])
        logits = self._logits[:rows]
        binding.put("logits", logits.reshape(rows, 1, self.vocabulary_size))
        binding.run()
        return logits

    def close(self) -> None:
        """Drop the bindings and the memory; the session stays the caller's."""
        self._bindings.clear()
        self._adapter_bindings.clear()
        self.memory.close()

    def _bound(self, first: int, adapters: Sequence[int | None]) -> Binding:
        """Return the binding of ``len(adapters)`` rows from ``first`` on."""
        rows = (first, first + len(adapters))
        if all(index is None for index in adapters):
            if rows not in self._bindings:
                self._bindings[rows] = self._session.bind(*self._memory_of(*rows))
            return self._bindings[rows]
        assert self._adapter_session is not None  # noqa: S101 - without it no adapter is loaded
        if rows not in self._adapter_bindings:
            self._adapter_bindings[rows] = self._adapter_session.bind(*self._memory_of(*rows))
        binding = self._adapter_bindings[rows]
        binding.choose(adapters)
        return binding

    def _memory_of(self, first: int, last: int) -> tuple[Mapping[str, Array], dict[str, Array]]:
        past = self.memory.rows(first, last)
        return past, {_PRESENT + name.removeprefix(_PAST): a for name, a in past.items()}


def key_value_bytes_per_token(session: Session) -> int:
    """Bytes of key/value memory that one token of one sequence takes.

    Raises:
        BundleError: The graph does not say how large its heads are.
    """
    return sum(
        heads * size * spec.dtype.itemsize
        for spec in _key_value_inputs(session)
        for _, heads, _, size in [spec.shape]
        if heads and size
    )


def _key_value_inputs(session: Session) -> list[TensorSpec]:
    specs = [spec for spec in session.inputs if spec.name.startswith(_PAST)]
    for spec in specs:
        if len(spec.shape) != 4 or spec.shape[1] is None or spec.shape[3] is None:  # noqa: PLR2004
            raise BundleError(f"The model's input {spec} has no fixed heads and head size.")
    return specs


def _check_signature(session: Session) -> None:
    inputs = {spec.name for spec in session.inputs}
    plain = sorted(name for name in inputs if not name.startswith(_PAST))
    if plain != ["attention_mask", "input_ids", _NUM_LOGITS] or len(inputs) == len(plain):
        raise BundleError(
            "The model is not a decoder that this runtime knows: it needs the inputs input_ids, "
            f"attention_mask, {_NUM_LOGITS} and past_key_values.*, "
            f"and has {', '.join(plain) or 'only past_key_values.*'}.",
            hint="Build the bundle again.",
        )


def _vocabulary_size(session: Session) -> int:
    for spec in session.outputs:
        match spec:
            case TensorSpec(name="logits", datatype="FP32", shape=(_, _, int(size))):
                return size
    raise BundleError("The model has no float32 output 'logits' with a fixed vocabulary size.")
