"""Where a server listens."""

import ipaddress
import re
from dataclasses import dataclass

from outpost_runtime.errors import ConfigurationError

_PORT = re.compile("[0-9]{1,5}")


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
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
