"""A box's public identity: what an operator brings to the publisher, once.

The box's id is the digest of both public keys, so nobody can claim a box with keys of his own.
"""

import hashlib
import re
from dataclasses import dataclass

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.update.content_keys import recipient_id

IDENTITY_FORMAT = "outpost-device/1"
MAX_IDENTITY_BYTES = 1 << 12
PUBLIC_KEY_BYTES = 32

_DOMAIN = b"outpost.device/1"
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceIdentity:
    """Who a box is, in public.

    Attributes:
        model: The device model, which offers name.
        encryption_key: Public X25519 key, 32 bytes, that content keys are wrapped for.
        signing_key: Public Ed25519 key, 32 bytes, that the box's reports are checked with.

    Raises:
        InvalidInputError: No offer could name the model.
    """

    model: str
    encryption_key: bytes
    signing_key: bytes

    def __post_init__(self) -> None:
        if not _MODEL.fullmatch(self.model):
            raise InvalidInputError(
                f"'{self.model[:80]}' is no device model.",
                hint="Use lower-case letters, digits, '.', '_' and '-'.",
            )

    @property
    def id(self) -> str:
        """The box's id."""
        return device_id(self.encryption_key, self.signing_key)

    @property
    def recipient(self) -> str:
        """Whom content keys are wrapped for."""
        return recipient_id(self.encryption_key)


def device_id(encryption_key: bytes, signing_key: bytes) -> str:
    """Return the id of the box that has these public keys."""
    return hashlib.sha256(_DOMAIN + encryption_key + signing_key).hexdigest()


def encode_identity(identity: DeviceIdentity) -> bytes:
    """Return the bytes of the document."""
    document = {
        "format": IDENTITY_FORMAT,
        "id": identity.id,
        "model": identity.model,
        "encryption_key": identity.encryption_key.hex(),
        "signing_key": identity.signing_key.hex(),
    }
    return canonical_json(document)


def parse_identity(data: bytes) -> DeviceIdentity:
    """Read the document.

    Raises:
        InvalidInputError: It is none, or its id is not that of its keys.
    """
    reader = parse_json_object(data[: MAX_IDENTITY_BYTES + 1], path="device identity:")
    found, claimed = reader.string("format"), reader.string("id")
    if found != IDENTITY_FORMAT:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{IDENTITY_FORMAT}'")
    identity = DeviceIdentity(
        model=reader.string("model"),
        encryption_key=_public_key(reader, "encryption_key"),
        signing_key=_public_key(reader, "signing_key"),
    )
    reader.end()
    if claimed != identity.id:
        raise reader.fault("id", "is not the id of these keys: the file was changed")
    return identity


def _public_key(reader: Reader, key: str) -> bytes:
    text = reader.string(key)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise reader.fault(key, f"must be {PUBLIC_KEY_BYTES} bytes in hexadecimal digits")
    return bytes.fromhex(text)
