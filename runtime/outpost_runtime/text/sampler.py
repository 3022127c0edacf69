"""From logits to a token. Pure: the same logits, history and random number give the same token.

The filters and their order are those of transformers' logits processors:
repetition penalty (Keskar et al. 2019), temperature, top-k (Fan et al. 2018),
top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.text.request import Sampling

Floats = NDArray[np.floating[Any]]

_FIRST_CANDIDATES = 1024


def choose(
    logits: NDArray[np.float32], sampling: Sampling, seen: Collection[int], uniform: float
) -> int:
    """Choose the next token.

    Args:
        logits: [vocabulary]; not changed.
        seen: Tokens of prompt and answer so far, for the repetition penalty.
        uniform: A random number in [0, 1); not used when greedy.
    """
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = _candidates(logits, sampling)
    cumulated = probabilities.cumsum()
    index = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def penalize(
    logits: NDArray[np.float32], seen: Collection[int], penalty: float
) -> NDArray[np.float32]:
    """Return logits with seen tokens made less likely: divided if positive, else multiplied."""
    penalized = logits.copy()
    ids = np.fromiter(set(seen), np.int64)
    values = penalized[ids]
    penalized[ids] = np.where(values > 0, values / penalty, values * penalty)
    return penalized


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Return the natural logarithm of a token's probability."""
    top = logits.max()
    total = np.exp(logits - top, dtype=np.float32).sum(dtype=np.float64)
    return float(logits[token] - top - np.log(total))


def _candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], Floats]:
    """Return the ids that pass all filters and their relative probabilities."""
    # The maximum goes first: divided by a tiny temperature it would be infinite.
    below = logits.astype(np.float64) - float(logits.max())
    weights = np.exp(below / sampling.temperature)
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return np.arange(len(weights)), weights
    kept = _likeliest(weights, sampling)
    return kept, weights[kept]


def _likeliest(weights: Floats, sampling: Sampling) -> NDArray[np.int64]:
    """Return the ids that pass top-k, top-p and min-p, likeliest first.

    Only as many of the likeliest are sorted as the filters need: sorting a
    vocabulary of 262,144 takes longer than running a small model.
    """
    top_k = min(sampling.top_k or len(weights), len(weights))
    total = weights.sum() if top_k == len(weights) else _top_sum(weights, top_k)
    limit = min(top_k, int(np.count_nonzero(weights >= sampling.min_p * weights.max())))
    if sampling.top_p == 1:  # summed up, the least likely would be lost in rounding
        return _sorted_top(weights, limit)
    count = min(limit, _FIRST_CANDIDATES)
    while True:
        ids = _sorted_top(weights, count)
        before = weights[ids].cumsum() - weights[ids]
        enough = int(np.searchsorted(before, sampling.top_p * total))
        if enough < count or count == limit:
            return ids[: max(1, enough)]
        count = min(count * 8, limit)


def _sorted_top(weights: Floats, count: int) -> NDArray[np.int64]:
    # A stable order among equals keeps seeded answers the same everywhere.
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    top = np.sort(np.argpartition(weights, -count)[-count:])
    return top[np.argsort(-weights[top], kind="stable")]


def _top_sum(weights: Floats, count: int) -> float:
    return float(np.partition(weights, -count)[-count:].sum())
