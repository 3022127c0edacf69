"""Where a server listens, and whether a client is of its machine."""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from outpost_runtime.errors import ConfigurationError

_PORT = re.compile("[0-9]{1,5}")


@lru_cache(maxsize=256)  # it is asked of every request, and reading an address takes 8 µs
def is_loopback(host: str) -> bool:
    """Whether a name or an IP address is of this machine's own, which no other one reaches."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None  # noqa: PLR2004 - of IP
    return (mapped or address).is_loopback


def host_of_peer(peer: str) -> str:
    """Return the host of a client that gRPC names ``ipv4:127.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``.

    One behind a socket file is of this machine.
    """
    kind, _, rest = unquote(peer).partition(":")
    return "localhost" if kind == "unix" else rest.rpartition(":")[0].strip("[]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A host and a port; port 0 lets the system choose one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``host:port``.

        Raises:
            ConfigurationError: The text is something else.
        """
        host, _, port = text.rpartition(":")
        if not host or "/" in host or not _PORT.fullmatch(port) or int(port) > 0xFFFF:  # noqa: PLR2004
            raise ConfigurationError(
                f"'{text[:80]}' is not an address.", hint="Write HOST:PORT, such as 127.0.0.1:8001."
            )
        return cls(host=host.strip("[]"), port=int(port))

    @classmethod
    def of_host(cls, text: str) -> "Address":
        """Read an HTTP Host header: a name or address, perhaps with a port, which is left out."""
        name, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal():
            name = text
        return cls(host=name.strip("[]"), port=0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
