"""The memory of a decoder and the two kinds of runs over it: prefill and decode.

Everything that a run touches is allocated once, touched once and bound by
pointer: a freshly allocated logits buffer of a large vocabulary costs more in
page faults than the model itself. ``past_key_values`` and ``present`` are bound
to the same memory, so a run appends to it in place. One row of that memory is
one slot; the first rows can run as a batch without a copy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import BundleError
from outpost_runtime.sessions import Binding, Session
from outpost_runtime.tensors import Array, TensorSpec

PREFILL_CHUNK = 256
"""Most tokens of a prompt that one run reads; a cancelled prompt stops between runs."""

_PAST = "past_key_values."
_PRESENT = "present."


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValueShape:
    """Sizes of one layer's key (or value) memory, per slot."""

    heads: int
    head_dim: int


class Decoder:
    """One language model's key/value memory, bound to its session.

    Args:
        session: A decoder graph with ``input_ids`` and ``attention_mask`` [batch, n]
            int64, ``past_key_values.*`` and ``present.*``
            [batch, heads, length, head_dim], and ``logits`` [batch, 1, vocabulary]
            float32 of the last token only.
        slots: Sequences that can live at once.
        max_length: Tokens that one slot can hold.

    Raises:
        BundleError: The graph is not of that kind.
    """

    def __init__(self, session: Session, *, slots: int, max_length: int) -> None:
        _check_signature(session)
        self.slots = slots
        self.max_length = max_length
        self.vocabulary_size = _vocabulary_size(session)
        # `ones` and not `empty`: writing every page now keeps page faults out of the first answers.
        self._mask = np.ones(slots * max_length, np.int64)
        self._ids = np.ones(max(slots, PREFILL_CHUNK), np.int64)
        self._logits = np.ones((slots, 1, self.vocabulary_size), np.float32)
        self._memory = {
            spec.name: np.ones((slots, shape.heads, max_length, shape.head_dim), spec.dtype)
            for spec, shape in _key_value_inputs(session)
        }
        self._session = session
        self._prefills = [self._bind(slot, slot + 1) for slot in range(slots)]
        self._decodes = {1: self._prefills[0]}

    @property
    def memory_bytes(self) -> int:
        """Bytes of all buffers together."""
        buffers: list[Array] = [self._mask, self._ids, self._logits, *self._memory.values()]
        return sum(buffer.nbytes for buffer in buffers)

    def prefill(self, slot: int, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        """Read a chunk of a prompt into a slot behind the ``past`` tokens that it holds.

        Args:
            slot: The row of the memory.
            tokens: [n] token ids, n at most :data:`PREFILL_CHUNK`.
            past: Tokens of this sequence that the slot holds already.

        Returns:
            [vocabulary] logits of the last token: a view, valid until the next run.
        """
        count = len(tokens)
        self._ids[:count] = tokens
        binding = self._prefills[slot]
        binding.feed("input_ids", self._ids[:count].reshape(1, count))
        binding.feed("attention_mask", self._mask[: past + count].reshape(1, past + count))
        binding.run()
        logits: NDArray[np.float32] = self._logits[slot, 0]
        return logits

    def decode(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """Append one token to each of the leading slots, as one batch.

        Args:
            tokens: The token of slot 0, 1, …; at most ``slots``.
            lengths: Tokens that each of these slots holds already.

        Returns:
            [len(tokens), vocabulary] logits: a view, valid until the next run.
        """
        rows, total = len(tokens), max(lengths) + 1
        if rows not in self._decodes:
            self._decodes[rows] = self._bind(0, rows)
        binding = self._decodes[rows]
        self._ids[:rows] = tokens
        binding.feed("input_ids", self._ids[:rows].reshape(rows, 1))
        binding.feed("attention_mask", self._padded_mask(lengths, total))
        binding.run()
        return self._logits[:rows, 0]

    def close(self) -> None:
        """Drop the bindings and the memory; the session stays the caller's."""
        self._prefills.clear()
        self._decodes.clear()
        self._memory.clear()

    def _bind(self, first: int, last: int) -> Binding:
        rows = slice(first, last)
        past: dict[str, Array] = {name: memory[rows] for name, memory in self._memory.items()}
        present = {_PRESENT + name.removeprefix(_PAST): array for name, array in past.items()}
        return self._session.bind(past, present | {"logits": self._logits[rows]})

    def _padded_mask(self, lengths: list[int], total: int) -> NDArray[np.int64]:
        rows = len(lengths)
        mask = self._mask[: rows * total].reshape(rows, total)
        if rows == 1:
            return mask  # the whole buffer holds ones between batches
        mask = np.zeros((rows, total), np.int64)
        for row, length in enumerate(lengths):
            mask[row, : length + 1] = 1
        return mask


def key_value_bytes_per_token(session: Session) -> int:
    """Bytes of key/value memory that one token of one sequence takes."""
    return sum(
        shape.heads * shape.head_dim * spec.dtype.itemsize
        for spec, shape in _key_value_inputs(session)
    )


def _key_value_inputs(session: Session) -> list[tuple[TensorSpec, KeyValueShape]]:
    found = []
    for spec in session.inputs:
        if not spec.name.startswith(_PAST):
            continue
        _, heads, _, head_dim = spec.shape
        if heads is None or head_dim is None:
            raise BundleError(f"The model's input {spec} has no fixed heads and head size.")
        shape = KeyValueShape(heads=heads, head_dim=head_dim)
        found.append((spec, shape))
    return found


def _check_signature(session: Session) -> None:
    inputs = {spec.name for spec in session.inputs}
    plain = {name for name in inputs if not name.startswith(_PAST)}
    if plain != {"input_ids", "attention_mask"} or len(inputs) == len(plain):
        raise BundleError(
            "The model is not a decoder that this runtime knows: it needs the inputs input_ids, "
            f"attention_mask and past_key_values.*, and has {', '.join(sorted(inputs))}."
        )


def _vocabulary_size(session: Session) -> int:
    for spec in session.outputs:
        match spec:
            case TensorSpec(name="logits", datatype="FP32", shape=(_, _, int(size))):
                return size
    raise BundleError("The model has no float32 output 'logits' with a fixed vocabulary size.")
