"""What a service manager hears from a server."""

import asyncio
import socket
import time

import pytest
from outpost_runtime.server.service_manager import ServiceManager

from tests.support.fixtures import CLASSIFIER
from tests.support.serving import serving


class _Manager:
    def __init__(self, address):
        self.address = address
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._door.bind("\0" + address[1:] if address.startswith("@") else address)
        self._door.settimeout(10)

    def hears(self):
        return self._door.recv(100).decode()

    def close(self):
        self._door.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    name = tmp_path / "notify"
    found = _Manager(str(name) if request.param == "file" else f"@{name}")
    yield found
    found.close()


def test_ready_then_signs_of_life_then_stopping(manager):
    async def serve():
        # Not more than the door's queue of ten holds: nobody reads meanwhile.
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "50000"}
        async with ServiceManager(environment).serving():
            await asyncio.sleep(0.15)

    asyncio.run(serve())
    assert manager.hears() == "READY=1"
    signs = 0
    while (state := manager.hears()) == "WATCHDOG=1":
        signs += 1
    assert state == "STOPPING=1"
    assert signs >= 3


def test_a_loop_that_hangs_gives_no_sign_of_life(manager):
    async def hang():
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000"}
        async with ServiceManager(environment).serving():
            time.sleep(0.1)  # noqa: ASYNC251 - the fault

    asyncio.run(hang())
    assert [manager.hears(), manager.hears()] == ["READY=1", "STOPPING=1"]


@pytest.mark.parametrize("period", ["", "0", "soon", "-5"])
def test_no_watchdog_is_fed_where_none_was_asked_for(manager, period):
    async def serve():
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": period}
        async with ServiceManager(environment).serving():
            await asyncio.sleep(0.01)

    asyncio.run(serve())
    assert [manager.hears(), manager.hears()] == ["READY=1", "STOPPING=1"]


def test_nothing_is_said_without_a_manager():
    ServiceManager({}).tell("READY=1")


def test_a_manager_that_has_gone_changes_nothing(tmp_path):
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")


def test_the_server_says_ready_when_it_answers(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with serving(tmp_path / "store", [CLASSIFIER]):
        assert manager.hears() == "READY=1"
    assert manager.hears() == "STOPPING=1"
