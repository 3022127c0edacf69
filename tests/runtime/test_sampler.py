import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.text.request import Sampling
from outpost_runtime.text.sampler import _candidates, choose, log_probability

LOGITS = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)


def _by_the_book(logits, sampling):
    """Sort everything and filter in the order of transformers' logits processors."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    share = weights[order] / weights[order].sum()
    if sampling.top_p < 1:
        order = order[(np.cumsum(share) - share) < sampling.top_p]
    return set(order[weights[order] >= sampling.min_p * weights.max()].tolist())


@settings(max_examples=200, deadline=None)
@example(temperature=0.0625, top_p=1.0, top_k=0, min_p=0.0, seed=0)
@example(temperature=0.0625, top_p=1.0, top_k=2000, min_p=0.001, seed=0)
@given(
    temperature=st.floats(0.05, 3),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 6000),
    min_p=st.floats(0, 0.9),
    seed=st.integers(0, 100),
)
def test_the_filters_keep_what_sorting_everything_keeps(temperature, top_p, top_k, min_p, seed):
    logits = np.random.default_rng(seed).normal(0, 2, 3000).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    kept = set(_candidates(logits, sampling)[0].tolist())
    expected = _by_the_book(logits, sampling)
    assert (
        kept == expected or len(kept ^ expected) == 1
    )  # a tie with the limit may round either way


def test_temperature_zero_takes_the_likeliest():
    assert choose(LOGITS, Sampling(), [], 0.99) == int(LOGITS.argmax())


def test_a_tiny_temperature_is_greedy():
    assert choose(LOGITS, Sampling(temperature=1e-45), [], 0.99) == int(LOGITS.argmax())


def test_sampled_frequencies_are_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    grid = (np.arange(10_000) + 0.5) / 10_000
    drawn = [choose(logits, Sampling(temperature=1.0), [], u) for u in grid]
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=2e-4)


def test_top_k_one_is_greedy_whatever_the_random_number():
    for uniform in (0.0, 0.5, 0.999999):
        sampling = Sampling(temperature=2.0, top_k=1)
        assert choose(LOGITS, sampling, [], uniform) == int(LOGITS.argmax())


def test_a_penalty_makes_seen_tokens_less_likely_and_leaves_the_logits_alone():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert choose(logits, Sampling(repetition_penalty=1.5), [0], 0) == 1
    assert choose(logits, Sampling(repetition_penalty=1.5), [1], 0) == 0
    assert logits.tolist() == pytest.approx([2.0, 1.9, -1.0])


def test_log_probabilities_sum_to_one():
    assert np.exp([log_probability(LOGITS, i) for i in range(5000)]).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 1),
        ("repetition_penalty", 0),
    ],
)
def test_an_impossible_parameter_is_refused_by_name(name, value):
    with pytest.raises(InvalidInputError, match=name):
        Sampling(**{name: value})
