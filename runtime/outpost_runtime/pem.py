"""Certificates and keys in PEM (RFC 7468), read and given to TLS."""

import os
import ssl
from pathlib import Path

from outpost_runtime.errors import ConfigurationError

_MAX_BYTES = 1 << 20
_BEGIN = b"-----BEGIN "


def read_pem(path: Path) -> bytes:
    """Read certificates or a key.

    Raises:
        ConfigurationError: The file cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or error}.", hint="Name a PEM file."
        ) from error
    if len(data) > _MAX_BYTES or _BEGIN not in data:  # gRPC takes an empty one for the public's
        raise ConfigurationError(f"{path} is no PEM file.", hint="Name one.")
    return data


def read_pair(certificate: Path | None, key: Path | None) -> tuple[bytes, bytes] | None:
    """Read a certificate and its key, where they are named.

    Raises:
        ConfigurationError: One is named without the other, or a file is none.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError(
            "A certificate and its key go together.",
            hint="Name both, --tls-certificate and --tls-key, or neither.",
        )
    return read_pem(certificate), read_pem(key)


def show(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Let a context show a certificate.

    Args:
        certificate: PEM; its own first, then those that vouch for it.
        key: PEM, not encrypted.

    Raises:
        ConfigurationError: They are none, not of one pair, or of a kind that gRPC does not take.
    """
    # A context reads files only; this one is in memory, and gone when it is closed.
    with os.fdopen(os.memfd_create("tls"), "wb") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"This TLS certificate and key cannot be used: {error.reason or error}.",
                hint="Name PEM files: a certificate, and its own key without a passphrase.",
            ) from error
    from cryptography import x509  # noqa: PLC0415 - a sixth of a second, for who has a certificate
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415

    public = x509.load_pem_x509_certificate(certificate).public_key()
    curves = (ec.SECP256R1, ec.SECP384R1)
    is_curve = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, curves)
    if not is_curve and not isinstance(public, rsa.RSAPublicKey):
        raise ConfigurationError(
            "The TLS certificate has a key of a kind that gRPC does not take.",
            hint="Use RSA, or ECDSA with P-256 or P-384.",
        )


def believe(context: ssl.SSLContext, authorities: bytes) -> None:
    """Let a context believe certificates, and what they have signed.

    Args:
        authorities: PEM.

    Raises:
        ConfigurationError: They are none.
    """
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
    except ssl.SSLError as error:
        raise ConfigurationError(
            "The certificates to believe cannot be used.", hint="Name a file of them, in PEM."
        ) from error
