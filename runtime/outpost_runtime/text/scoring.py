"""How well a decoder predicts a text: the measurement behind every figure of evidence.

Every token is fed through the very decode runs that serve requests, so the score
is that of the served model and not of another graph of the same weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.sampler import log_probability


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model thinks of a text of n tokens.

    Attributes:
        log_probabilities: [n - 1] float64, natural logarithm of each next token's probability.
        top_tokens: [n - 1] int64, the likeliest next token at each position.
    """

    log_probabilities: NDArray[np.float64]
    top_tokens: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability (Jelinek et al. 1977)."""
        return float(np.exp(-self.log_probabilities.mean()))

    def select(self, counted: NDArray[np.bool_]) -> "Score":
        """Return the score of some positions only: ``counted`` is [n - 1]."""
        return Score(
            log_probabilities=self.log_probabilities[counted], top_tokens=self.top_tokens[counted]
        )

    def agreement(self, top_tokens: NDArray[np.int64]) -> float:
        """Share of positions at which another model's likeliest token is the same."""
        return float((self.top_tokens == top_tokens).mean())


def score(
    decoder: Decoder,
    ids: Sequence[int],
    progress: Callable[[int], None] | None = None,
    *,
    adapter: int | None = None,
) -> Score:
    """Score a text on slot 0 of a decoder that nothing else is using.

    Args:
        ids: At least 2 token ids, at most ``decoder.max_length``.
        progress: Called with 1 after every token.
        adapter: Index of an adapter that the decoder has, or None.
    """
    log_probabilities, top_tokens = [], []
    for position, (token, following) in enumerate(pairwise(ids)):
        logits = decoder.decode([token], [position], [adapter])[0]
        log_probabilities.append(log_probability(logits, following))
        top_tokens.append(int(logits.argmax()))
        if progress:
            progress(1)
    return Score(
        log_probabilities=np.array(log_probabilities), top_tokens=np.array(top_tokens, np.int64)
    )
