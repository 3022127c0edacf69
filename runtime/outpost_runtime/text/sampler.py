"""From logits to a token. Pure: the same logits, history and random number give the same token.

The filters and their order are those of transformers' logits processors:
repetition penalty (Keskar et al. 2019), temperature, top-k (Fan et al. 2018),
top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024); frequency and presence
penalties and logit bias are added to the logits, as OpenAI's API defines them.

Nothing sorts the vocabulary: for 262,144 tokens that would take longer than a small
model takes to run. The likeliest tokens are found by a threshold on their weights,
which is lowered until what lies above it is certain to hold all that can be chosen.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.text.request import Sampling

_THRESHOLDS = (*(10.0**-n for n in range(1, 8)), 0.0)
_TINIEST_TEMPERATURE = 1e-30  # below it, a division in float32 is no number any more


@dataclass(frozen=True, slots=True)
class History:
    """What a text holds already, for the penalties.

    Attributes:
        seen: Tokens of prompt and answer.
        made: How often each token stands in the answer.
    """

    seen: Collection[int] = ()
    made: Mapping[int, int] | None = None


def adjust(
    logits: NDArray[np.float32], sampling: Sampling, history: History
) -> NDArray[np.float32]:
    """Return [vocabulary] logits after penalties and bias; the given ones are not changed."""
    if not sampling.adjusts:
        return logits
    adjusted = logits.copy()
    if sampling.repetition_penalty != 1 and history.seen:
        ids = _ids(history.seen)
        values, penalty = adjusted[ids], np.float32(sampling.repetition_penalty)
        adjusted[ids] = np.where(values > 0, values / penalty, values * penalty)
    if history.made and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = np.fromiter(history.made.values(), np.float32)
        adjusted[_ids(history.made)] -= counts * np.float32(
            sampling.frequency_penalty
        ) + np.float32(sampling.presence_penalty)
    for token, bias in sampling.logit_bias:
        adjusted[token] += np.float32(bias)
    return adjusted


def choose(logits: NDArray[np.float32], sampling: Sampling, uniform: float) -> int:
    """Choose the next token.

    Args:
        logits: [vocabulary], adjusted; -inf is never chosen. Not changed.
        uniform: A random number in [0, 1); not used when greedy.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, sampling)
    cumulated = weights.cumsum(dtype=np.float64)
    index = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    if index == len(ids):  # the product was rounded up
        index = int(np.flatnonzero(weights)[-1])
    return int(ids[index])


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Return the natural logarithm of a token's probability."""
    return float(logits[token] - _log_total(logits))


def likeliest(logits: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """Return the ``count`` likeliest tokens with their log-probabilities, likeliest first."""
    if not count:
        return ()
    ids = _top(logits, count)
    total = _log_total(logits)
    return tuple((int(token), float(logits[token] - total)) for token in ids)


def candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids that pass all filters, in order, and their relative probabilities."""
    temperature = max(sampling.temperature, _TINIEST_TEMPERATURE)
    # The maximum goes first: divided by a tiny temperature it would be infinite.
    weights = np.exp((logits - logits.max()) / np.float32(temperature))
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return np.arange(len(weights)), weights
    total = float(weights.sum(dtype=np.float64))
    floor = sampling.min_p if sampling.top_p == 1 else 0.0  # top-p counts what min-p drops
    ids = np.arange(0)
    for threshold in _THRESHOLDS:
        ids = np.flatnonzero(weights >= max(threshold, floor))
        if threshold <= floor or _suffices(weights[ids], sampling, total):
            break
    likely = weights[ids]
    passed = _passed(likely, sampling, total)
    return ids[passed], likely[passed]


def _suffices(weights: NDArray[np.float32], sampling: Sampling, total: float) -> bool:
    """Whether nothing below these weights can pass top-k and top-p."""
    if sampling.top_k:
        return len(weights) >= sampling.top_k
    return sampling.top_p < 1 and float(weights.sum(dtype=np.float64)) > sampling.top_p * total


def _passed(weights: NDArray[np.float32], sampling: Sampling, total: float) -> NDArray[np.int64]:
    """Return the places, in order, of the weights that pass all filters; at least one does."""
    falling = np.sort(weights)[::-1]  # values only: many times faster than sorting places
    if sampling.top_k:
        falling = falling[: sampling.top_k]
        total = float(falling.sum(dtype=np.float64))
    count = int(np.count_nonzero(falling >= sampling.min_p))
    if sampling.top_p < 1:
        before = falling.cumsum(dtype=np.float64) - falling
        count = min(count, int(np.searchsorted(before, sampling.top_p * total)))
    least = falling[max(count, 1) - 1]
    above = np.flatnonzero(weights > least)
    equal = np.flatnonzero(weights == least)[: max(count, 1) - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _top(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    count = min(count, len(values))
    top = np.sort(np.argpartition(values, -count)[-count:])
    return top[np.argsort(-values[top], kind="stable")]


def _log_total(logits: NDArray[np.float32]) -> float:
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def _ids(tokens: Collection[int]) -> NDArray[np.int64]:
    return np.fromiter(tokens, np.int64, len(tokens))
