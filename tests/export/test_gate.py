import math

from outpost_export.gate import misses


def test_figures_on_the_right_side_pass():
    assert (
        misses({"cosine": 0.999, "max_difference": 0.1}, {"cosine": 0.999, "max_difference": 0.1})
        == []
    )


def test_every_miss_is_told_with_both_numbers():
    figures = {"cosine": 0.98, "perplexity_increase": 0.05, "greedy_tokens": 32}
    thresholds = {"cosine": 0.99, "perplexity_increase": 0.01, "greedy_tokens": 32}
    assert [str(miss) for miss in misses(figures, thresholds)] == [
        "cosine is 0.98, demanded is at least 0.99",
        "perplexity_increase is 0.05, demanded is at most 0.01",
    ]


def test_what_is_not_a_number_or_was_not_measured_misses():
    thresholds = {"perplexity_increase": 0.01, "cosine": 0.9}
    assert len(misses({"perplexity_increase": math.nan}, thresholds)) == 2
