import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.latency import Figure, UsualWait
from outpost_runtime.update.slots import Behaviour, Probation
from outpost_runtime.update.verdict import ProbationLimits, Verdict, judge

_LIMITS = ProbationLimits(seconds=600, enough=20, failures=0.05, slower=3.0)
_SETTLED = 60


@pytest.mark.parametrize(
    ("before", "seen", "watched", "verdict"),
    [
        (Behaviour(), Behaviour(), 599, Verdict.WATCH),
        (Behaviour(), Behaviour(), 600, Verdict.COMMIT),
        (Behaviour(), Behaviour(requests=17, failures=2), 1, Verdict.WATCH),  # too few to tell
        (Behaviour(), Behaviour(requests=18, failures=2), 1, Verdict.BACK),
        (Behaviour(requests=90, failures=10), Behaviour(requests=18, failures=2), 1, Verdict.WATCH),
        (Behaviour(requests=90, failures=10), Behaviour(requests=15, failures=5), 1, Verdict.BACK),
    ],
)
def test_probation_ends_by_time_or_by_failures(before, seen, watched, verdict):
    assert judge(Probation(before=before), seen, watched, _LIMITS)[0] is verdict


def test_what_earlier_servers_have_watched_counts():
    assert judge(Probation(watched=590), Behaviour(), 10, _LIMITS)[0] is Verdict.COMMIT


def _wait(seconds, figure=Figure.FIRST_TOKEN, *, beside=1, work=5, count=20):
    return UsualWait(figure=figure, beside=beside, work=work, count=count, seconds=seconds)


def _judged(before, now, watched=_SETTLED):
    probation = Probation(before=Behaviour(waits=tuple(before)))
    return judge(probation, Behaviour(waits=tuple(now)), watched, _LIMITS)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (Figure.FIRST_TOKEN, "The first token takes 3.1"),
        (Figure.TOKEN, "A token takes 3.1"),
        (Figure.CALL, "A call takes 3.1"),
    ],
)
def test_a_bundle_that_lets_clients_wait_longer_goes_back_and_says_for_what(figure, words):
    verdict, reason = _judged([_wait(1.0, figure)], [_wait(3.1, figure)])
    assert verdict is Verdict.BACK
    assert reason == f"{words} times as long as with the bundle before it."


def test_one_that_is_a_little_slower_stays():
    assert _judged([_wait(1.0)], [_wait(2.9)])[0] is Verdict.WATCH


def test_few_requests_say_nothing_on_either_side():
    few, slow = _wait(1.0, count=19), _wait(99.0)
    assert _judged([few], [slow])[0] is Verdict.WATCH
    assert _judged([_wait(1.0)], [_wait(99.0, count=19)])[0] is Verdict.WATCH


def test_the_time_after_a_swap_says_nothing_yet():
    assert _judged([_wait(1.0)], [_wait(99.0)], watched=_SETTLED - 1)[0] is Verdict.WATCH


def test_milliseconds_are_nobodys_loss():
    assert _judged([_wait(0.0005)], [_wait(0.009)])[0] is Verdict.WATCH
    assert _judged([_wait(0.0005)], [_wait(0.011)])[0] is Verdict.BACK


def test_other_figures_say_nothing():
    assert _judged([_wait(0.1, Figure.TOKEN)], [_wait(9.0)])[0] is Verdict.WATCH


def test_more_work_and_more_others_may_take_longer_in_proportion():
    light = [_wait(1.0, beside=1, work=5)]
    assert _judged(light, [_wait(3.0 * 8 - 0.1, beside=2, work=7)])[0] is Verdict.WATCH
    assert _judged(light, [_wait(3.0 * 8 + 0.1, beside=2, work=7)])[0] is Verdict.BACK


def test_less_work_and_fewer_others_need_not_take_less_time():
    heavy = [_wait(1.0, beside=4, work=9)]
    assert _judged(heavy, [_wait(2.9, beside=0, work=1)])[0] is Verdict.WATCH
    assert _judged(heavy, [_wait(3.1, beside=0, work=1)])[0] is Verdict.BACK


def test_most_of_what_can_be_judged_decides():
    before = [_wait(1.0, work=5), _wait(1.0, work=6)]
    slow_half = [_wait(9.0, work=5, count=30), _wait(1.0, work=6, count=30)]
    assert _judged(before, slow_half)[0] is Verdict.WATCH
    slow_most = [_wait(9.0, work=5, count=31), _wait(1.0, work=6, count=30)]
    assert _judged(before, slow_most)[0] is Verdict.BACK


# An engine whose answers take a fixed time and one for everything that has to be computed; answers
# that share a run, or are read beside others, cost something between nothing and all of it.

_TRAFFIC = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 14), st.integers(20, 500)), min_size=1, max_size=12
)
_ENGINE = st.tuples(st.floats(0.001, 1.0), st.floats(1e-6, 1e-2), st.floats(0.0, 1.0))


def _usual(traffic, engine, times=1.0):
    fixed, per_work, per_other = engine
    return [
        _wait(
            times * (fixed + per_work * 2**work) * (1 + per_other * (2**beside - 1)),
            beside=beside,
            work=work,
            count=count,
        )
        for beside, work, count in traffic
    ]


@given(before=_TRAFFIC, now=_TRAFFIC, engine=_ENGINE)
def test_an_equally_fast_bundle_under_any_other_load_stays(before, now, engine):
    assert _judged(_usual(before, engine), _usual(now, engine))[0] is Verdict.WATCH


@given(traffic=_TRAFFIC, engine=_ENGINE)
def test_one_that_takes_far_longer_under_the_same_load_goes_back(traffic, engine):
    before, now = _usual(traffic, engine), _usual(traffic, engine, times=16.0)
    assert _judged(before, now)[0] is Verdict.BACK
