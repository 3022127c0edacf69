"""A box's TLS certificate, signed by itself: who has brought it home from the box knows the box.

Its key is made from the box's secret, so no other file holds it, and a TPM that seals the secret
seals it, too. The certificate does not expire: a box may have no clock that could say so (the date
is that of RFC 5280, 4.1.2.5, for none). Names are checked by clients, as everywhere (RFC 9525).
"""

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outpost_runtime.errors import ConfigurationError, unreadable
from outpost_runtime.update.device_keys import KeyStore

CERTIFICATE = "certificate.pem"

_SIGNS_FOR_ITSELF = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
"""And for no other one: gRPC's BoringSSL asks this, and not for basic constraints."""

_HOST = re.compile("[A-Za-z0-9._-]{1,253}")
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_ORDER = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
"""Of P-256 (SEC 2, 2.4.2)."""


def name_of(box_id: str) -> str:
    """Return the name that a box's certificate has in any case."""
    return f"outpost-{box_id[:16]}"


def tls_key(own: KeyStore) -> bytes:
    """Return the key of a box's certificate, in PEM."""
    pem, no = Encoding.PEM, NoEncryption()
    return _key(own).private_bytes(pem, PrivateFormat.PKCS8, no)


def make_certificate(own: KeyStore, box_id: str, names: Sequence[str] = ()) -> bytes:
    """Return a box's certificate, in PEM.

    Args:
        names: Host names and IP addresses at which clients reach it, beside :func:`name_of`.

    Raises:
        ConfigurationError: A name cannot be one.
    """
    key, subject = _key(own), name_of(box_id)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_SIGNS_FOR_ITSELF, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_name(text) for text in (subject, *names)]), False),
        (identifier, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    )
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=_BEGIN,
        not_valid_after=_NEVER,
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def certificate_of(store: Path) -> bytes:
    """Return a box's certificate, in PEM; nothing where it has none.

    Raises:
        StoreError: It may not be read.
    """
    try:
        return (store / CERTIFICATE).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise unreadable(store / CERTIFICATE, error) from error


def current_certificate(
    store: Path, own: KeyStore, box_id: str, names: Sequence[str] = ()
) -> bytes:
    """Return the certificate that clients know, or a new one where it has to say something else.

    Raises:
        ConfigurationError: A name cannot be one.
        StoreError: The one that is there may not be read.
    """
    there = certificate_of(store)
    if _is_current(there, own, box_id, names):
        return there
    return make_certificate(own, box_id, names)


def _is_current(certificate: bytes, own: KeyStore, box_id: str, names: Sequence[str]) -> bool:
    try:
        there = x509.load_pem_x509_certificate(certificate)
        alternatives = there.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return False
    wanted = x509.SubjectAlternativeName([_name(text) for text in (name_of(box_id), *names)])
    return there.public_key() == _key(own).public_key() and alternatives.value == wanted


def _key(own: KeyStore) -> ec.EllipticCurvePrivateKey:
    # 64 bytes for a number of 32, so that none is likelier than another (FIPS 186-5, A.2.1).
    number = int.from_bytes(own.derive("tls 1") + own.derive("tls 2"))
    return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())


def _name(text: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    with suppress(UnicodeError):
        name = text.encode("idna").decode()
        if _HOST.fullmatch(name):
            return x509.DNSName(name)
    raise ConfigurationError(
        f"{text[:80]!r} is no host name.", hint="Write it as clients do, or an IP address."
    )
