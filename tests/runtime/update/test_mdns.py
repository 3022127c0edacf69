"""Mirrors near by, told and found over multicast DNS on this machine's loopback."""

import contextlib
import gc
import os
import socket
import time

import pytest
from outpost_runtime.address import Address
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.update.fetch import mdns
from outpost_runtime.update.fetch.mdns import announced, find_mirrors
from zeroconf import ServiceInfo, Zeroconf

LOOPBACK = ("127.0.0.1",)


def _multicasts():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            member = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not _multicasts(), reason="no multicast on this loopback")


@pytest.fixture(autouse=True)
def own_service(monkeypatch):
    """Tests of other processes tell of theirs on the same loopback."""
    monkeypatch.setattr(mdns, "SERVICE", f"_outpost-{os.getpid() % 100_000}._tcp.local.")


@contextlib.contextmanager
def _told(*services):
    """Tell of services as anybody on a network may."""
    daemon = Zeroconf(interfaces=list(LOOPBACK))
    for number, (port, addresses) in enumerate(services):
        info = ServiceInfo(
            mdns.SERVICE,
            f"somebody-{number}.{mdns.SERVICE}",
            port=port,
            parsed_addresses=addresses,
            server=f"somebody-{os.getpid()}-{number}.local.",
        )
        daemon.register_service(info, cooperating_responders=True)
    try:
        yield
    finally:
        daemon.close()


@pytest.mark.slow
def test_a_mirror_that_is_told_is_found_until_it_stops():
    address = Address(host="127.0.0.1", port=18002)
    with announced(address, interfaces=LOOPBACK):
        assert find_mirrors(most=1, seconds=5, interfaces=LOOPBACK) == [address]
    begin = time.monotonic()
    assert find_mirrors(seconds=0.5, interfaces=LOOPBACK) == []
    assert time.monotonic() - begin < 3


@pytest.mark.slow
def test_the_number_of_addresses_is_bounded_whatever_a_network_says():
    crowd = [(9000 + i, [f"10.0.{i}.{j}" for j in range(1, 9)]) for i in range(3)]
    with _told(*crowd):
        found = find_mirrors(most=6, seconds=3, interfaces=LOOPBACK)
    assert len(found) == len(set(found)) == 6
    ports = [address.port for address in found]
    assert max(map(ports.count, ports)) <= 4


@pytest.mark.slow
def test_only_addresses_of_a_local_network_are_used():
    away = ["8.8.8.8", "224.0.0.1", "0.0.0.0", "255.255.255.255"]  # noqa: S104 - to be refused
    with _told((9001, away), (9002, ["192.168.7.7"])):
        assert find_mirrors(most=2, seconds=2.5, interfaces=LOOPBACK) == [
            Address(host="192.168.7.7", port=9002)
        ]


@pytest.mark.parametrize(
    ("text", "is_local"),
    [("10.1.2.3", True), ("172.16.0.1", True), ("192.168.0.9", True), ("169.254.3.4", True),
     ("8.8.8.8", False), ("127.0.0.1", False), ("0.0.0.0", False),  # noqa: S104
     ("224.0.0.251", False),
     ("255.255.255.255", False), ("240.0.0.1", False), ("172.32.0.1", False)],
)  # fmt: skip
def test_an_address_is_local_or_it_is_not_used(text, is_local):
    assert mdns._is_local(text, allow_loopback=False) == is_local


def test_what_listens_everywhere_is_told_under_addresses_of_this_machine():
    assert mdns._own_addresses("192.168.1.5") == ["192.168.1.5"]
    assert mdns._own_addresses("localhost") == ["127.0.0.1"]
    everywhere = mdns._own_addresses("0.0.0.0")  # noqa: S104 - what is asked about
    assert "127.0.0.1" not in everywhere


# zeroconf leaves its socket to the garbage collector when it cannot begin.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_where_there_is_no_such_network_nothing_is_found_and_telling_fails():
    nowhere = ("192.0.2.77",)
    assert find_mirrors(seconds=0.2, interfaces=nowhere) == []
    address = Address(host="192.0.2.77", port=1)
    with (
        pytest.raises(ConfigurationError, match="--no-announce"),
        announced(address, interfaces=nowhere),
    ):
        pass
    gc.collect()
