"""An embedding bundle, opened: tokenizer in front of the tensor engine."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.interface import EmbeddingInterface
from outpost_runtime.priority import Precedence
from outpost_runtime.sessions import Session
from outpost_runtime.tensor.engine import TensorEngine, TensorLimits, TensorShape
from outpost_runtime.tensors import Array
from outpost_runtime.tokenizer import MAX_TEXT_CHARACTERS, Encoded, Tokenizer

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_TEXTS = 256
BATCH = 16
"""Texts of one run, at most; batches are formed by length, so that little padding is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Texts of similar length on their way through one run.

    Attributes:
        positions: Where in the request each row belongs.
    """

    positions: tuple[int, ...]
    output: "Future[dict[str, Array]]"


class EmbeddingModel:
    """What serves one embedding bundle.

    Args:
        bundle: Its interface is an :class:`EmbeddingInterface`.
        session: Owned by the model from now on.

    Raises:
        BundleError: The tokenizer of the bundle cannot be read, or the model wants other inputs.
    """

    def __init__(
        self,
        bundle: Bundle,
        interface: EmbeddingInterface,
        session: Session,
        limits: TensorLimits | None = None,
        precedence: Precedence | None = None,
    ) -> None:
        self.bundle = bundle
        self.interface = interface
        data = bundle.read(interface.tokenizer)
        self.tokenizer = Tokenizer(data, max_tokens=interface.max_tokens)
        if not {spec.name for spec in interface.inputs} <= set(ENCODER_INPUTS):
            raise BundleError(f"The model has inputs beside {', '.join(ENCODER_INPUTS)}.")
        shape = TensorShape(
            max_batch=interface.max_batch, max_sequence=interface.max_tokens, padded=True
        )
        self.engine = TensorEngine(session, shape, limits, precedence)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenize texts, cut at the bundle's maximum as sentence-transformers does.

        Raises:
            InvalidInputError: There are none, too many, or one is far too long.
        """
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise InvalidInputError(f"{len(texts)} texts were sent; 1 to {MAX_TEXTS} are allowed.")
        return [self._encode(text) for text in texts]

    def submit(self, encoded: Sequence[Encoded]) -> list[Batch]:
        """Queue everything, sorted by length into batches.

        Raises:
            BusyError: Too many runs are waiting.
        """
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        size = min(BATCH, self.interface.max_batch)
        groups = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
        batches: list[Batch] = []
        try:
            for group in groups:
                rows = [encoded[i].ids for i in group]
                feeds = padded(rows, [spec.name for spec in self.interface.inputs])
                batches.append(Batch(positions=group, output=self.engine.submit(feeds)))
        except BaseException:
            for batch in batches:
                batch.output.cancel()
            raise
        return batches

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Free the model; see :meth:`TensorEngine.close`."""
        self.engine.close(drain_seconds=drain_seconds)

    def _encode(self, text: str) -> Encoded:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                f"A text has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are read."
            )
        return self.tokenizer.encode_cut(text)


def padded(rows: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Array]:
    """Return the named inputs of an encoder for texts of different lengths.

    Args:
        rows: Token ids of each text.
        names: Of ``input_ids``, ``attention_mask`` and ``token_type_ids``.

    Returns:
        [batch, longest] int64 each, zero where there is no token.
    """
    shape = (len(rows), max(len(row) for row in rows))
    known = {name: np.zeros(shape, np.int64) for name in ENCODER_INPUTS}
    for index, row in enumerate(rows):
        known["input_ids"][index, : len(row)] = row
        known["attention_mask"][index, : len(row)] = 1
    return {name: known[name] for name in names}


def place(rows: Sequence[tuple[Sequence[int], NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    """Put the rows of finished batches back into the order of the request."""
    placed = {
        position: values[index]
        for positions, values in rows
        for index, position in enumerate(positions)
    }
    return [placed[position] for position in range(len(placed))]
