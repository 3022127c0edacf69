import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.text.request import Sampling
from outpost_runtime.text.sampler import (
    History,
    adjust,
    candidates,
    choose,
    likeliest,
    log_probability,
)

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
    kept = set(candidates(logits, sampling)[0].tolist())
    differing = kept ^ _by_the_book(logits, sampling)
    shares = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    seen = [token for token in differing if shares[token] > 1e-7 * shares.sum()]
    # A tie with the limit may round either way; what float32 cannot see does not matter.
    assert len(seen) <= 1


def test_temperature_zero_takes_the_likeliest():
    assert choose(LOGITS, Sampling(), 0.99) == int(LOGITS.argmax())


def test_a_tiny_temperature_is_greedy():
    assert choose(LOGITS, Sampling(temperature=1e-45), 0.99) == int(LOGITS.argmax())


def test_sampled_frequencies_are_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    grid = (np.arange(10_000) + 0.5) / 10_000
    drawn = [choose(logits, Sampling(temperature=1.0), u) for u in grid]
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=2e-4)


def test_top_k_one_is_greedy_whatever_the_random_number():
    for uniform in (0.0, 0.5, 0.999999):
        sampling = Sampling(temperature=2.0, top_k=1)
        assert choose(LOGITS, sampling, uniform) == int(LOGITS.argmax())


def test_a_penalty_makes_seen_tokens_less_likely_and_leaves_the_logits_alone():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    sampling = Sampling(repetition_penalty=1.5)
    assert adjust(logits, sampling, History(seen=[0])).argmax() == 1
    assert adjust(logits, sampling, History(seen=[1])).argmax() == 0
    assert adjust(logits, sampling, History(seen=[2])).tolist() == pytest.approx([2.0, 1.9, -1.5])
    assert logits.tolist() == pytest.approx([2.0, 1.9, -1.0])


def test_frequency_counts_and_presence_does_not():
    logits = np.zeros(3, np.float32)
    history = History(made={1: 3, 2: 1})
    often = adjust(logits, Sampling(frequency_penalty=0.5), history)
    once = adjust(logits, Sampling(presence_penalty=0.5), history)
    assert often.tolist() == pytest.approx([0, -1.5, -0.5])
    assert once.tolist() == pytest.approx([0, -0.5, -0.5])


def test_a_bias_can_force_and_forbid_a_token():
    forced = adjust(LOGITS, Sampling(logit_bias=((7, 100.0),)), History())
    best = int(LOGITS.argmax())
    forbidden = adjust(LOGITS, Sampling(logit_bias=((best, -100.0),)), History())
    assert forced.argmax() == 7
    assert forbidden.argmax() != best


def test_what_is_masked_is_never_chosen():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500]] = 1.0
    settings_ = [Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9, top_k=50)]
    drawn = {choose(logits, s, u / 50) for s in settings_ for u in range(50)}
    assert drawn == {3, 500}


def test_the_likeliest_are_named_with_their_probabilities():
    first, second = likeliest(LOGITS, 2)
    assert first[0] == int(LOGITS.argmax())
    assert first == (first[0], pytest.approx(log_probability(LOGITS, first[0])))
    assert first[1] >= second[1]


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
        ("frequency_penalty", 11),
        ("presence_penalty", float("nan")),
        ("logit_bias", ((5, float("inf")),)),
        ("logit_bias", ((5, 0.0),) * 1025),
    ],
)
def test_an_impossible_parameter_is_refused_by_name(name, value):
    with pytest.raises(InvalidInputError, match=name):
        Sampling(**{name: value})
