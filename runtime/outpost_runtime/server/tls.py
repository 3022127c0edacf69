"""TLS of the doors that a server opens to its network (RFC 8446, and 1.2 for older clients)."""

import ssl
from dataclasses import dataclass, field

import grpc

from outpost_runtime.pem import believe, show


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a server shows of itself, and whom it lets in.

    Attributes:
        certificate: PEM; the server's own first, then those that vouch for it.
        key: PEM, not encrypted.
        client_authorities: PEM; a client must show a certificate that one of them signed, or one
            of these itself. None lets in clients that show none.

    Raises:
        ConfigurationError: One of them cannot be used.
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
        show(context, self.certificate, self.key)
        if self.client_authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # As gRPC does, on every Python: a certificate that is named itself needs no other one,
            # and authorities that plain OpenSSL has made will do.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            believe(context, self.client_authorities)
        return context
