"""Content keys: what blocks are encrypted with, and how one reaches a box.

A content key belongs to a family and is known by its identity, which stands in signed releases.
A repository holds it wrapped for each recipient with HPKE (RFC 9180: X25519, HKDF-SHA256,
AES-256-GCM), whose info names the secret and the recipient. A recipient is a box or a group.
A group is one more key pair; its private key is wrapped for each of its boxes, so that a new
content key is wrapped once for all of them::

    keys/<key>/<recipient>.json             a content key for one box or one group
    keys/groups/<recipient>/<number>.json   a group's private key for one box; numbers from 1 on

Nobody signs a wrapped key. Whoever unwraps one compares it with the identity that it was asked
for: a content key's in a signed release, a group's in nothing but its use.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError, TrustError
from outpost_runtime.update.encryption import KEY_BYTES

WRAPPED_FORMAT = "outpost-wrapped-key/1"
MAX_WRAPPED_BYTES = 1 << 12
MAX_GROUPS = 16
"""Groups that one box may be in."""

_KEY_DOMAIN = b"outpost.content-key/1"
_INFO = b"outpost.wrapped-key/1"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_SEALED_BYTES = 32 + KEY_BYTES + 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SecretKind(StrEnum):
    """What a wrapped secret is."""

    CONTENT = "content"
    GROUP = "group"
    """A group's private X25519 key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrappedKey:
    """A secret that only its recipient can read.

    Attributes:
        key: The secret's identity: :func:`content_key_id`, or a group's :func:`recipient_id`.
        recipient: Whom it is for.
        sealed: HPKE's encapsulated key and ciphertext, 80 bytes.
    """

    kind: SecretKind
    key: str
    recipient: str
    sealed: bytes


def new_content_key() -> bytes:
    """Return a new random content key."""
    return secrets.token_bytes(KEY_BYTES)


def content_key_id(secret: bytes) -> str:
    """Return the identity of a content key, which gives nothing of it away."""
    return hashlib.sha256(_KEY_DOMAIN + secret).hexdigest()


def recipient_id(public_key: bytes) -> str:
    """Return the identity of a box's or a group's public X25519 key of 32 bytes."""
    return hashlib.sha256(public_key).hexdigest()


def wrapped_key_path(key: str, recipient: str) -> str:
    """Return where a content key for a recipient lies in a repository."""
    return f"keys/{key}/{recipient}.json"


def group_key_path(recipient: str, number: int) -> str:
    """Return where the private key of a box's ``number``-th group lies in a repository."""
    return f"keys/groups/{recipient}/{number}.json"


def wrap_content_key(secret: bytes, public_key: bytes) -> WrappedKey:
    """Encrypt a content key for the holder of a private X25519 key."""
    return _wrap(SecretKind.CONTENT, content_key_id(secret), secret, public_key)


def wrap_group_key(private_key: X25519PrivateKey, public_key: bytes) -> WrappedKey:
    """Encrypt a group's private key for one of its boxes."""
    group = recipient_id(public_bytes(private_key))
    return _wrap(SecretKind.GROUP, group, private_key.private_bytes_raw(), public_key)


def unwrap(wrapped: WrappedKey, private_key: X25519PrivateKey) -> bytes:
    """Decrypt a wrapped secret, and make sure that it is the one that its identity says.

    Raises:
        TrustError: It is for another recipient, changed, or another secret.
    """
    try:
        secret = _SUITE.decrypt(wrapped.sealed, private_key, _info(wrapped))
    except (InvalidTag, ValueError):  # the latter where the encapsulated key is no usable point
        raise _useless(wrapped, "it is for another recipient, or it was changed") from None
    if len(secret) != KEY_BYTES or _identity(wrapped.kind, secret) != wrapped.key:
        raise _useless(wrapped, "what is in it is another key")
    return secret


def unwrap_through_group(wrapped: WrappedKey, group_secret: bytes) -> bytes:
    """Decrypt what is wrapped for a group, with the group's unwrapped private key.

    Raises:
        TrustError: It is for another recipient, changed, or another secret.
    """
    return unwrap(wrapped, X25519PrivateKey.from_private_bytes(group_secret))


def public_bytes(private_key: X25519PrivateKey) -> bytes:
    """Return the 32 bytes of a private key's public half."""
    return private_key.public_key().public_bytes_raw()


def encode_wrapped_key(wrapped: WrappedKey) -> bytes:
    """Return the bytes of a wrapped key's document."""
    document = {
        "format": WRAPPED_FORMAT,
        "kind": wrapped.kind.value,
        "key": wrapped.key,
        "recipient": wrapped.recipient,
        "sealed": base64.b64encode(wrapped.sealed).decode(),
    }
    return canonical_json(document)


def parse_wrapped_key(data: bytes) -> WrappedKey:
    """Read a wrapped key's document, which nobody has signed.

    Raises:
        TrustError: It is none that this build knows.
    """
    if len(data) > MAX_WRAPPED_BYTES:
        raise TrustError(f"A wrapped key is larger than {MAX_WRAPPED_BYTES:,} bytes.")
    try:
        return _wrapped(parse_json_object(data, path="wrapped key:"))
    except InvalidInputError as error:
        raise TrustError(
            f"It is no wrapped key that this build knows: {error.message}",
            hint="Ask the publisher to grant the key again.",
        ) from error


def _wrap(kind: SecretKind, key: str, secret: bytes, public_key: bytes) -> WrappedKey:
    wrapped = WrappedKey(kind=kind, key=key, recipient=recipient_id(public_key), sealed=b"")
    recipient = X25519PublicKey.from_public_bytes(public_key)
    sealed = _SUITE.encrypt(secret, recipient, _info(wrapped))
    return WrappedKey(kind=kind, key=key, recipient=wrapped.recipient, sealed=sealed)


def _identity(kind: SecretKind, secret: bytes) -> str:
    if kind is SecretKind.CONTENT:
        return content_key_id(secret)
    return recipient_id(public_bytes(X25519PrivateKey.from_private_bytes(secret)))


def _info(wrapped: WrappedKey) -> bytes:
    names = (wrapped.kind.value, wrapped.key, wrapped.recipient)
    return b"\0".join((_INFO, *(name.encode() for name in names)))


def _wrapped(reader: Reader) -> WrappedKey:
    found = reader.string("format")
    if found != WRAPPED_FORMAT:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{WRAPPED_FORMAT}'")
    kind = reader.string("kind")
    if kind not in set(SecretKind):
        raise reader.fault("kind", f"is '{kind[:80]}', which is not known")
    wrapped = WrappedKey(
        kind=SecretKind(kind),
        key=_digest(reader, "key"),
        recipient=_digest(reader, "recipient"),
        sealed=reader.binary("sealed", least=_SEALED_BYTES, most=_SEALED_BYTES),
    )
    reader.end()
    return wrapped


def _digest(reader: Reader, key: str) -> str:
    value = reader.string(key)
    if not _DIGEST.fullmatch(value):
        raise reader.fault(key, "is no SHA-256 in lower-case hexadecimal digits")
    return value


def _useless(wrapped: WrappedKey, why: str) -> TrustError:
    return TrustError(
        f"The wrapped key {wrapped.key[:12]} is of no use here: {why}.",
        hint="Get it from another source, or ask the publisher to grant the key again.",
    )
