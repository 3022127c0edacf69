"""An embedding bundle, opened: tokenizer in front of the tensor engine."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.manifest import EmbeddingInterface
from outpost_runtime.sessions import Session
from outpost_runtime.tensor_engine import TensorEngine
from outpost_runtime.tensors import Array
from outpost_runtime.tokenizer import MAX_TEXT_CHARACTERS, Tokenizer

MAX_TEXTS = 256
BATCH = 16
"""Texts of one run; batches are formed by length, so that little padding is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A text as the model reads it."""

    ids: tuple[int, ...]
    truncated: bool


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
        BundleError: The tokenizer of the bundle cannot be read.
    """

    def __init__(self, bundle: Bundle, interface: EmbeddingInterface, session: Session) -> None:
        self.bundle = bundle
        self.interface = interface
        self.tokenizer = Tokenizer(bundle.path(interface.tokenizer))
        self.engine = TensorEngine(session)

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
        groups = [tuple(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
        batches: list[Batch] = []
        try:
            for group in groups:
                feeds = self.feeds([encoded[i].ids for i in group])
                batches.append(Batch(positions=group, output=self.engine.submit(feeds)))
        except BaseException:
            for batch in batches:
                batch.output.cancel()
            raise
        return batches

    def feeds(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        """Return padded model inputs: [batch, longest] int64 each."""
        longest = max(len(row) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        known: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        known["token_type_ids"] = np.zeros_like(ids)
        return {spec.name: known[spec.name] for spec in self.interface.inputs}

    def close(self) -> None:
        """Free the model."""
        self.engine.close()

    def _encode(self, text: str) -> Encoded:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                f"A text has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are read."
            )
        ids = self.tokenizer.encode(text, add_special_tokens=True)
        limit = self.interface.max_tokens
        if len(ids) <= limit:
            return Encoded(ids=tuple(ids), truncated=False)
        # The marker at the end of the text (such as [SEP]) stays at the end.
        return Encoded(ids=(*ids[: limit - 1], ids[-1]), truncated=True)


def place(rows: Sequence[tuple[Sequence[int], NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    """Put the rows of finished batches back into the order of the request."""
    placed = {
        position: values[index]
        for positions, values in rows
        for index, position in enumerate(positions)
    }
    return [placed[position] for position in range(len(placed))]
