from collections import Counter

import pytest
from outpost_runtime.latency import MOST_KINDS, Alike, Figure, Wait, usual_waits
from outpost_runtime.statistics import Statistics


def _wait(seconds, work=10, beside=0):
    return Wait(figure=Figure.CALL, beside=beside, work=work, seconds=seconds)


def _waits(*waits):
    statistics = Statistics()
    for wait in waits:
        statistics.waited(wait)
    return statistics.waits()


def test_requests_are_alike_within_a_factor_of_two():
    assert _wait(1, work=8, beside=2).alike == _wait(9, work=15, beside=3).alike
    assert _wait(1, work=8).alike != _wait(1, work=16).alike
    assert _wait(1, beside=0).alike != _wait(1, beside=1).alike


@pytest.mark.parametrize("seconds", [0.0003, 0.02, 1.0, 7.0, 300.0])
def test_a_median_is_told_within_ten_per_cent(seconds):
    (usual,) = usual_waits(_waits(*[_wait(seconds)] * 3))
    assert usual.seconds == pytest.approx(seconds, rel=0.1)
    assert usual.count == 3


def test_a_few_that_hang_do_not_move_a_median():
    (usual,) = usual_waits(_waits(*[_wait(0.1)] * 6, *[_wait(900.0)] * 5))
    assert usual.seconds == pytest.approx(0.1, rel=0.1)


def test_no_time_at_all_is_a_time():
    assert usual_waits(_waits(_wait(0.0)))[0].seconds < 1e-5


def test_what_came_before_is_left_out():
    before = _waits(_wait(9.0), _wait(9.0), _wait(0.1))
    now = _waits(_wait(9.0), _wait(9.0), _wait(0.1), _wait(0.1))
    (usual,) = usual_waits(now, before)
    assert (usual.count, round(usual.seconds, 1)) == (1, 0.1)
    assert usual_waits(before, before) == ()


def test_the_kinds_with_most_requests_are_told_first_and_not_all():
    kinds = {
        Alike(figure=Figure.CALL, beside=0, work=work): Counter({0: work + 1})
        for work in range(MOST_KINDS + 5)
    }
    counts = [wait.count for wait in usual_waits(kinds)]
    assert counts == list(range(MOST_KINDS + 5, 5, -1))
