"""Evidence for encoders: the built graph against the torch model, at several shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array
from outpost_runtime.tokenizer import Tokenizer

from outpost_export.encoder_graph import EMBEDDING_OUTPUT, Encoder, input_names
from outpost_export.progress import Reporter

_BATCHES = (1, 2, 5, 16)
_GOLDEN_CASES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run: padded inputs, and what the torch model answers."""

    feeds: dict[str, Array]
    expected: NDArray[np.float32]


def cases(
    encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> Iterator[Case]:
    """Yield the texts in batches of several sizes with the torch model's answers.

    Args:
        encoder: float32, in evaluation mode.
        max_tokens: Longer texts are cut.
    """
    names, rest, turn = input_names(encoder), list(texts), 0
    while rest:
        size = _BATCHES[turn % len(_BATCHES)]
        batch, rest, turn = rest[:size], rest[size:], turn + 1
        rows = [tokenizer.encode(text, add_special_tokens=True)[:max_tokens] for text in batch]
        feeds = _padded(rows, names)
        with torch.inference_mode():
            output = encoder(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        yield Case(feeds=feeds, expected=output.numpy())


def measure(
    session: Session, wanted: Sequence[Case], output: str, reporter: Reporter
) -> dict[str, float]:
    """Measure a build.

    Args:
        session: The build, opened by the runtime.
        output: The output's name; embeddings are compared by cosine, logits by label.

    Returns:
        Figures by name (see gate.py).
    """
    similarities: list[float] = []
    difference = 0.0
    with reporter.step("Comparing with the checkpoint", total=len(wanted)) as did:
        for case in wanted:
            got = session.run(case.feeds)[output]
            rows = _real_rows(case, got), _real_rows(case, case.expected)
            similarities += _similarities(*rows, embedding=output == EMBEDDING_OUTPUT)
            difference = max(difference, float(np.abs(rows[0] - rows[1]).max()))
            did(1)
    name = "cosine" if output == EMBEDDING_OUTPUT else "label_agreement"
    worst_or_share = min(similarities) if name == "cosine" else float(np.mean(similarities))
    texts = sum(len(case.expected) for case in wanted)
    figures = {name: worst_or_share, "max_difference": difference, "evaluated_texts": float(texts)}
    if name == "cosine":
        figures["cosine_mean"] = float(np.mean(similarities))
    return figures


def golden(session: Session, wanted: Sequence[Case]) -> dict[str, Array]:
    """Return golden tensors: the build's own answers to the first cases."""
    tensors: dict[str, Array] = {}
    for index, case in enumerate(wanted[:_GOLDEN_CASES]):
        for side, values in (("inputs", case.feeds), ("outputs", session.run(case.feeds))):
            tensors |= {f"{index}/{side}/{name}": array for name, array in values.items()}
    return tensors


def _padded(rows: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Array]:
    shape = (len(rows), max(len(row) for row in rows))
    known = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask")}
    for index, row in enumerate(rows):
        known["input_ids"][index, : len(row)] = row
        known["attention_mask"][index, : len(row)] = 1
    known["token_type_ids"] = np.zeros(shape, np.int64)
    return {name: known[name] for name in names}


def _real_rows(case: Case, output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [n, values]: one row per text, or per token that is not padding."""
    if output.ndim == 2:  # noqa: PLR2004 - [batch, values]
        return output
    real: NDArray[np.float32] = output[case.feeds["attention_mask"] == 1]
    return real


def _similarities(
    got: NDArray[np.float32], expected: NDArray[np.float32], *, embedding: bool
) -> list[float]:
    if not embedding:
        return [float(same) for same in got.argmax(-1) == expected.argmax(-1)]
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosines: list[float] = ((got * expected).sum(-1) / np.maximum(norms, 1e-12)).tolist()
    return cosines
