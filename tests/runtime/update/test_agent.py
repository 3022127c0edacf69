from datetime import datetime

import pytest
from outpost_runtime.errors import FetchError
from outpost_runtime.update.agent import UpdateAgent
from outpost_runtime.update.policy import UpdatePolicy, Window


class _World:
    def __init__(self, policy, chance=0.0):
        self.seconds, self.hour, self.calls = 0.0, 12, []
        self.fails = False
        self.agent = UpdateAgent(
            policy,
            self._update,
            local_now=lambda: datetime(2026, 11, 27, self.hour),  # noqa: DTZ001 - local on purpose
            monotonic=lambda: self.seconds,
            chance=lambda: chance,
        )

    def _update(self, should_stop, most):
        self.calls.append((should_stop, most))
        if self.fails:
            raise FetchError("The link is down.")


def test_it_asks_at_once_and_then_at_its_interval():
    world = _World(UpdatePolicy(every_seconds=100))
    assert world.agent.round()
    assert not world.agent.round()
    world.seconds = 100
    assert world.agent.round()


def test_boxes_that_start_together_do_not_ask_together():
    world = _World(UpdatePolicy(every_seconds=100), chance=1.0)
    assert not world.agent.round()
    world.seconds = 60
    assert world.agent.round()
    world.seconds = 169
    assert not world.agent.round()
    world.seconds = 170
    assert world.agent.round()


def test_outside_of_its_windows_it_waits_and_asks_when_one_opens():
    world = _World(UpdatePolicy(windows=(Window(begin=22 * 60, end=5 * 60),)))
    assert not world.agent.round()
    world.hour = 23
    assert world.agent.round()


def test_a_window_that_closes_stops_what_is_under_way():
    world = _World(UpdatePolicy(windows=(Window(begin=11 * 60, end=13 * 60),)))
    world.agent.round()
    should_stop, _ = world.calls[0]
    assert not should_stop()
    world.hour = 14
    assert should_stop()


def test_it_waits_while_the_file_is_not_there(tmp_path):
    parked = tmp_path / "parked"
    world = _World(UpdatePolicy(only_while=parked))
    assert not world.agent.round()
    parked.touch()
    assert world.agent.round()


@pytest.mark.parametrize("metered", [True, False])
def test_a_metered_link_bounds_what_an_update_costs(tmp_path, metered):
    flag = tmp_path / "metered"
    world = _World(UpdatePolicy(metered_while=flag, metered_bytes=1234))
    if metered:
        flag.touch()
    world.agent.round()
    assert world.calls[0][1] == (1234 if metered else None)


def test_a_source_that_fails_is_asked_again_at_the_next_interval():
    world = _World(UpdatePolicy(every_seconds=100))
    world.fails = True
    assert world.agent.round()
    assert not world.agent.round()
    world.seconds = 100
    assert world.agent.round()


def test_a_link_that_begins_to_cost_stops_what_was_free(tmp_path):
    flag = tmp_path / "metered"
    world = _World(UpdatePolicy(metered_while=flag))
    world.agent.round()
    should_stop, most = world.calls[0]
    assert most is None
    assert not should_stop()
    flag.touch()
    assert should_stop()
