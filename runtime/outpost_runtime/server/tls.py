"""TLS of the doors that a server opens to its network (RFC 8446, and 1.2 for older clients)."""

import os
import ssl
from dataclasses import dataclass, field

import grpc

from outpost_runtime.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a server shows of itself, and whom it lets in.

    Attributes:
        certificate: PEM; the server's own first, then those that vouch for it.
        key: PEM, not encrypted.
        client_authorities: PEM; a client must show a certificate that one of them signed, or one
            of these itself. None lets in clients that show none.

    Raises:
        ConfigurationError: One of them is none, or key and certificate are not of one pair.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_authorities: bytes | None = None

    def __post_init__(self) -> None:
        self.http()  # gRPC would say so only to the first client

    def grpc(self) -> grpc.ServerCredentials:
        """Return it as gRPC takes it."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_authorities,
            require_client_auth=self.client_authorities is not None,
        )

    def http(self) -> ssl.SSLContext:
        """Return it as asyncio takes it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A context reads files only; this one is in memory, and gone when it is closed.
        with os.fdopen(os.memfd_create("tls"), "wb") as file:
            file.write(self.certificate + b"\n" + self.key)
            file.flush()
            try:
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
            except ssl.SSLError as error:
                raise ConfigurationError(
                    f"The server's TLS certificate cannot be used: {error.reason or error}.",
                    hint="Name PEM files: the certificate, and its own key without a passphrase.",
                ) from error
        if self.client_authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(cadata=self.client_authorities.decode())
            except (ssl.SSLError, ValueError) as error:
                raise ConfigurationError(
                    "The certificates that clients' ones are checked with cannot be used.",
                    hint="Name a PEM file with --tls-client-ca.",
                ) from error
        return context
