"""Mirrors near by, found by multicast DNS (RFC 6762, 6763): ``_outpost-mirror._tcp``.

Anybody on the network may answer. What is found are addresses, trusted for nothing; bounded in
time and number; and only addresses of a local network, so that nobody sends us elsewhere.
"""

import contextlib
import ipaddress
import queue
import socket
import time
from collections.abc import Iterator, Sequence

import ifaddr
from zeroconf import (
    Error,
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceListener,
    Zeroconf,
)

from outpost_runtime.address import Address
from outpost_runtime.errors import ConfigurationError

SERVICE = "_outpost-mirror._tcp.local."
_MOST_NAMES = 32
_NAME_SECONDS = 0.5
"""For one name: whoever tells a name and no address must not use up the others' time."""

_MOST_ADDRESSES = 4
"""Of one mirror; a box has a few networks."""


@contextlib.contextmanager
def announced(address: Address, *, interfaces: Sequence[str] = ()) -> Iterator[None]:
    """Tell the local network of a mirror while the context lasts.

    Args:
        address: Where it listens; for ``0.0.0.0`` every local address of this machine is told.
        interfaces: Addresses of the networks to tell; empty for all.

    Raises:
        ConfigurationError: The network cannot be told.
    """
    host = socket.gethostname().split(".")[0] or "outpost"
    info = ServiceInfo(
        SERVICE,
        f"{host}-{address.port}.{SERVICE}",
        port=address.port,
        parsed_addresses=_own_addresses(address.host),
        server=f"{host}-outpost-mirror.local.",
    )
    with contextlib.ExitStack() as stack:
        try:
            daemon = _daemon(interfaces)
            stack.callback(daemon.close)
            daemon.register_service(info, allow_name_change=True)
        except (OSError, Error) as error:
            raise ConfigurationError(
                f"The mirror cannot be announced by mDNS: {error}.",
                hint="Start it with --no-announce and name its address to the boxes.",
            ) from error
        yield


def find_mirrors(
    *, seconds: float = 3.0, most: int = 4, interfaces: Sequence[str] = ()
) -> list[Address]:
    """Return addresses that call themselves mirrors; none where there is no network.

    Args:
        seconds: After which what has answered is what there is.
        most: Addresses that are enough.
        interfaces: Addresses of the networks to ask; empty for all.
    """
    end = time.monotonic() + seconds
    allow_loopback = any(ipaddress.ip_address(name).is_loopback for name in interfaces)
    found: dict[Address, None] = {}
    try:
        daemon = _daemon(interfaces)
    except OSError:  # no network, or no multicast: there are no mirrors, then
        return []
    listener = _Names()
    try:
        browser = ServiceBrowser(daemon, SERVICE, listener)
        while len(found) < most and (rest := end - time.monotonic()) > 0:
            name = listener.next(rest)
            info = name and _info(daemon, name, min(_NAME_SECONDS, end - time.monotonic()))
            if info:
                found |= dict.fromkeys(_usable(info, allow_loopback=allow_loopback))
        browser.cancel()
    finally:
        daemon.close()
    return list(found)[:most]


class _Names(ServiceListener):
    """Collects names, at most so many: a network can be full of them."""

    def __init__(self) -> None:
        self._names: queue.Queue[str] = queue.Queue(_MOST_NAMES)

    def next(self, seconds: float) -> str | None:
        """Return the next name, or None after so many seconds."""
        try:
            return self._names.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002 - as its base
        """Collect a name."""
        with contextlib.suppress(queue.Full):
            self._names.put_nowait(name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Nothing: a name counts once."""

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Nothing: whoever asks it will notice."""


def _daemon(interfaces: Sequence[str]) -> Zeroconf:
    return Zeroconf(interfaces=list(interfaces) or InterfaceChoice.All, ip_version=IPVersion.V4Only)


def _info(daemon: Zeroconf, name: str, seconds: float) -> ServiceInfo | None:
    try:
        return daemon.get_service_info(SERVICE, name, timeout=max(1, int(seconds * 1000)))
    except Error:  # a name that is none
        return None


def _usable(info: ServiceInfo, *, allow_loopback: bool) -> list[Address]:
    texts = info.parsed_addresses(IPVersion.V4Only)[:_MOST_ADDRESSES]
    if not info.port:
        return []
    return [Address(host=text, port=info.port) for text in texts if _is_local(text, allow_loopback)]


def _is_local(text: str, allow_loopback: bool) -> bool:  # noqa: FBT001 - as its caller names it
    address = ipaddress.IPv4Address(text)
    if address.is_loopback:
        return allow_loopback
    is_host = not (address.is_multicast or address.is_unspecified or address.is_reserved)
    return is_host and (address.is_private or address.is_link_local)


def _own_addresses(host: str) -> list[str]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [socket.gethostbyname(host)]
    if not address.is_unspecified:
        return [host]
    every = (ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips)
    return [ip for ip in every if isinstance(ip, str) and _is_local(ip, allow_loopback=False)]
