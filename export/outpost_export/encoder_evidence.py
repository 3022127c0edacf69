"""Evidence for encoders: the built graph against the torch model, at several shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from outpost_runtime.embeddings import padded
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array
from outpost_runtime.tokenizer import Tokenizer

from outpost_export.encoder_graph import EMBEDDING_OUTPUT, Encoder, input_names
from outpost_export.errors import ConversionError
from outpost_export.progress import Reporter

_BATCHES = (1, 2, 5, 16)
_GOLDEN_CASES = 2
_MORE_WORDS_THAN_ANY_MODEL_READS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run: padded inputs, and what the torch model answers."""

    feeds: dict[str, Array]
    expected: NDArray[np.float32]


def cases(encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Case]:
    """Yield the texts, and one of the full length, in batches of several sizes.

    Args:
        encoder: float32, in evaluation mode.
        tokenizer: The runtime's, cutting at the bundle's maximum.

    Raises:
        ConversionError: The torch model cannot read texts of that length.
    """
    names, rest, turn = input_names(encoder), [*texts, _longest(texts)], 0
    while rest:
        size = _BATCHES[turn % len(_BATCHES)]
        batch, rest, turn = rest[:size], rest[size:], turn + 1
        feeds = padded([tokenizer.encode_cut(text).ids for text in batch], names)
        yield Case(feeds=feeds, expected=_answer(encoder, feeds))


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
    differences: list[float] = []
    with reporter.step("Comparing with the checkpoint", total=len(wanted)) as did:
        for case in wanted:
            got = session.run(case.feeds)[output]
            rows = _real_rows(case, got), _real_rows(case, case.expected)
            similarities += _similarities(*rows, embedding=output == EMBEDDING_OUTPUT)
            differences.append(float(np.abs(rows[0] - rows[1]).max()))
            did(1)
    name = "cosine" if output == EMBEDDING_OUTPUT else "label_agreement"
    # numpy's minimum and maximum of anything with a NaN is NaN, which the gate never lets pass.
    worst_or_share = np.min(similarities) if name == "cosine" else np.mean(similarities)
    figures = {
        name: float(worst_or_share),
        "max_difference": float(np.max(differences)),
        "evaluated_texts": float(sum(len(case.expected) for case in wanted)),
    }
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


def _longest(texts: Sequence[str]) -> str:
    # A model that cannot read as many tokens as its bundle promises must fail here.
    return " ".join([*texts, "word " * _MORE_WORDS_THAN_ANY_MODEL_READS])


def _answer(encoder: Encoder, feeds: dict[str, Array]) -> NDArray[np.float32]:
    try:
        with torch.inference_mode():
            output = encoder(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    except (IndexError, RuntimeError) as error:
        shape = list(feeds["input_ids"].shape)
        raise ConversionError(
            f"The checkpoint itself cannot read token ids of shape {shape}: {error}",
            hint="Does its tokenizer's or its configuration's maximum length fit its positions?",
        ) from error
    answer: NDArray[np.float32] = output.numpy()
    return answer


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
        agreeing = (got.argmax(-1) == expected.argmax(-1)) & np.isfinite(got).all(-1)
        return [float(same) for same in agreeing]
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosines: list[float] = ((got * expected).sum(-1) / np.maximum(norms, 1e-12)).tolist()
    return cosines
