"""How commands reach a server."""

import argparse
from pathlib import Path

from outpost_runtime.client import DEFAULT_ADDRESS, Client, ClientTls
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.pem import read_pair, read_pem


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--address`` and what TLS needs."""
    server = parser.add_argument_group("the server")
    server.add_argument("--address", default=DEFAULT_ADDRESS, help="where it is (%(default)s)")
    server.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="speak TLS; PEM: the server's certificate, such as a box's certificate.pem, or who "
        "vouches for it",
    )
    server.add_argument(
        "--tls-name",
        metavar="NAME",
        help="a name in its certificate, where the address is none, such as a box's outpost-…",
    )
    server.add_argument(
        "--tls-certificate", type=Path, metavar="FILE", help="your own, where it asks for one; PEM"
    )
    server.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of that; PEM")


def connected(parsed: argparse.Namespace) -> Client:
    """Return a client of the server that these options name.

    Raises:
        ConfigurationError: They do not belong together, or a file cannot be read.
    """
    return Client(parsed.address, tls=_tls(parsed))


def _tls(parsed: argparse.Namespace) -> ClientTls | None:
    more = (parsed.tls_name, parsed.tls_certificate, parsed.tls_key)
    if parsed.tls_ca is None:
        if any(value is not None for value in more):
            raise ConfigurationError(
                "How to know the server is not said.", hint="Name its certificate with --tls-ca."
            )
        return None
    return ClientTls(
        authorities=read_pem(parsed.tls_ca),
        name=parsed.tls_name,
        shown=read_pair(parsed.tls_certificate, parsed.tls_key),
    )
