from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.documents import Reader
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.update.policy import (
    Circumstances,
    UpdatePolicy,
    Window,
    next_question,
    read_policy,
    why_wait,
)


def _policy(**table):
    return read_policy(Reader(table, path="outpost.toml:update"))


def test_a_window_over_midnight():
    policy = _policy(windows=["22:00-05:00"])
    open_at = [hour for hour in range(24) if not why_wait(policy, Circumstances(minute=hour * 60))]
    assert open_at == [0, 1, 2, 3, 4, 22, 23]


def test_without_windows_it_is_always_time():
    assert why_wait(UpdatePolicy(), Circumstances(minute=0)) == ""


def test_a_car_that_is_driven_does_not_update():
    policy = _policy(only_while="/run/vehicle/parked", windows=["00:00-12:00"])
    assert "parked is not there" in why_wait(policy, Circumstances(minute=5, allowed=False))
    assert why_wait(policy, Circumstances(minute=5)) == ""
    assert "no window" in why_wait(policy, Circumstances(minute=13 * 60))


@given(begin=st.integers(0, 1439), end=st.integers(0, 1439), minute=st.integers(0, 1439))
def test_a_window_and_its_complement_share_no_minute(begin, end, minute):
    inside, outside = Window(begin=begin, end=end), Window(begin=end, end=begin)
    assert inside.contains(minute) + outside.contains(minute) == (begin != end)


def test_everything_in_the_table_is_read():
    policy = _policy(
        every_minutes=30,
        windows=["01:30-02:00"],
        metered_while="/run/metered",
        metered_mebibytes=2,
        megabits_per_second=8,
        mirrors=True,
        probation_minutes=1,
    )
    assert policy == UpdatePolicy(
        every_seconds=1800,
        windows=(Window(begin=90, end=120),),
        metered_while=Path("/run/metered"),
        metered_bytes=2 << 20,
        bytes_per_second=1e6,
        mirrors=True,
        probation_seconds=60,
    )


@pytest.mark.parametrize(
    "table",
    [
        {"windows": ["22-05"]},
        {"windows": ["24:00-05:00"]},
        {"every_minutes": 0},
        {"megabits_per_second": -1},
        {"megabits_per_second": 0.009},
        {"unknown": 1},
    ],
)
def test_what_is_wrong_is_refused(table):
    with pytest.raises(InvalidInputError, match=r"outpost\.toml:update"):
        _policy(**table)


def test_boxes_spread_their_questions():
    assert [round(next_question(UpdatePolicy(), chance)) for chance in (0, 1)] == [3600, 3960]
