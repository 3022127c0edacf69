"""A secret of 32 bytes under a passphrase, as a document.

PKCS#8 has no place for a bare symmetric key, so this is JSON: scrypt (RFC 7914) stretches the
passphrase, AES-256-GCM encrypts with a random nonce, and what the document says of the secret
is authenticated with it. One guess at a passphrase costs 64 MiB and about a quarter of a second.
"""

import base64
import os
import re
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError

from outpost_export.errors import PublishError

SEALED_FORMAT = "outpost-sealed-secret/1"
MAX_SEALED_BYTES = 1 << 12
SECRET_BYTES = 32
COST = 1 << 16
"""scrypt's N; r is 8 and p is 1."""

_LEAST_COST, _MOST_COST = 1 << 10, 1 << 18
_BLOCKS, _LANES = 8, 1
_SALT, _NONCE, _TAG = 16, 12, 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MOST = 9999


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedSecret:
    """A secret that a passphrase opens.

    Attributes:
        kind: ``content`` or ``group``.
        name: The family, or the group.
        number: Counts the secrets of one name, from 1.
        key: The secret's identity.
        cost: scrypt's N.
        sealed: Nonce, ciphertext, tag.
    """

    kind: str
    name: str
    number: int
    key: str
    cost: int
    salt: bytes
    sealed: bytes


def seal_secret(
    secret: bytes, passphrase: str, *, kind: str, name: str, number: int, key: str, cost: int = COST
) -> SealedSecret:
    """Encrypt a secret under a passphrase."""
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    header = SealedSecret(
        kind=kind, name=name, number=number, key=key, cost=cost, salt=salt, sealed=b""
    )
    cipher = AESGCM(_stretched(passphrase, header))
    sealed = nonce + cipher.encrypt(nonce, secret, _authenticated(header))
    return SealedSecret(
        kind=kind, name=name, number=number, key=key, cost=cost, salt=salt, sealed=sealed
    )


def open_secret(document: SealedSecret, passphrase: str) -> bytes:
    """Decrypt a secret.

    Raises:
        PublishError: The passphrase is another one, or the document was changed.
    """
    nonce, sealed = document.sealed[:_NONCE], document.sealed[_NONCE:]
    cipher = AESGCM(_stretched(passphrase, document))
    try:
        return cipher.decrypt(nonce, sealed, _authenticated(document))
    except InvalidTag:
        raise PublishError(
            f"The passphrase does not open the {document.kind} key of '{document.name}', "
            "or its file was changed."
        ) from None


def encode_sealed_secret(document: SealedSecret) -> bytes:
    """Return the bytes of the document."""
    sealed = base64.b64encode(document.sealed).decode()
    return canonical_json(_header(document) | {"sealed": sealed})


def parse_sealed_secret(data: bytes, path: str) -> SealedSecret:
    """Read the document.

    Raises:
        PublishError: It is none that this build knows.
    """
    try:
        return _document(parse_json_object(data[: MAX_SEALED_BYTES + 1], path=f"{path}:"))
    except InvalidInputError as error:
        raise PublishError(f"It is no key file of this build: {error.message}") from error


def _document(reader: Reader) -> SealedSecret:
    found = reader.string("format")
    if found != SEALED_FORMAT:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{SEALED_FORMAT}'")
    sealed = _NONCE + SECRET_BYTES + _TAG
    document = SealedSecret(
        kind=reader.string("kind"),
        name=reader.string("name"),
        number=reader.integer("number"),
        key=reader.string("key"),
        cost=reader.integer("scrypt_n"),
        salt=reader.binary("salt", least=_SALT, most=_SALT),
        sealed=reader.binary("sealed", least=sealed, most=sealed),
    )
    reader.end()
    if not _NAME.fullmatch(document.name) or not 1 <= document.number <= _MOST:
        raise reader.fault("name", "or its number is not allowed")
    cost = document.cost
    if not _LEAST_COST <= cost <= _MOST_COST or cost & (cost - 1):
        raise reader.fault("scrypt_n", f"must be a power of two, {_LEAST_COST} to {_MOST_COST}")
    return document


def _stretched(passphrase: str, document: SealedSecret) -> bytes:
    scrypt = Scrypt(salt=document.salt, length=SECRET_BYTES, n=document.cost, r=_BLOCKS, p=_LANES)
    return scrypt.derive(passphrase.encode())


def _authenticated(document: SealedSecret) -> bytes:
    return canonical_json(_header(document))


def _header(document: SealedSecret) -> dict[str, Any]:
    return {
        "format": SEALED_FORMAT,
        "kind": document.kind,
        "name": document.name,
        "number": document.number,
        "key": document.key,
        "scrypt_n": document.cost,
        "salt": base64.b64encode(document.salt).decode(),
    }
