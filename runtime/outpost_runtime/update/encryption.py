"""C2SP chunked encryption, version 1, as Cobblestone-256: SHA-512 and AES-256-GCM.

Specification: https://c2sp.org/chunked-encryption. A sealed message is a salt of 24 bytes, a
commitment to the key of 32 bytes, and chunks of 16 KiB with a tag of 16 bytes each; the last
chunk is always shorter, and may be empty.

Blocks get a salt that follows from key and message, so that equal pieces of one family are equal
blocks; ``docs/update-format.md`` says what that gives away. Everything else gets a random one.
"""

import hashlib
import hmac
from typing import TYPE_CHECKING, BinaryIO

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from outpost_runtime.errors import TrustError

if TYPE_CHECKING:
    from cryptography.utils import Buffer

KEY_BYTES = 32
BLOCK_CONTEXT = b"outpost.block/1"

_SALT_DOMAIN = b"outpost.block-salt/1"
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
_SALT = 24
_COMMITMENT = 32
_HEADER = _SALT + _COMMITMENT
_NONCE = 12
_TAG = 16
_CHUNK = 1 << 14
_SEALED_CHUNK = _CHUNK + _TAG
_PIECE = 1 << 20

_AGAIN = "Get it again, from another source if there is one."


def sealed_size(size: int) -> int:
    """Return the bytes of a sealed message of ``size`` bytes."""
    return _HEADER + size + _TAG * (size // _CHUNK + 1)


def message_size(sealed: int) -> int:
    """Return the bytes of the message in ``sealed`` bytes.

    Raises:
        TrustError: No message has so many: some are missing.
    """
    chunks, last = divmod(sealed - _HEADER, _SEALED_CHUNK)
    if sealed < _HEADER or last < _TAG:
        raise TrustError("An encrypted piece was cut off: its end is missing.", hint=_AGAIN)
    return chunks * _CHUNK + last - _TAG


def seal(message: "Buffer", key: bytes) -> bytes:
    """Encrypt a block's message; the same message and key always give the same bytes.

    Args:
        key: A content key of 32 bytes, uniformly random.
    """
    salt = _block_salt(message, key)
    info = _INFO + salt + BLOCK_CONTEXT
    derived = HKDFExpand(SHA512(), KEY_BYTES + _NONCE + _COMMITMENT, info).derive(key)
    encrypt = AESGCM(derived[:KEY_BYTES]).encrypt_into
    nonce = int.from_bytes(derived[KEY_BYTES : KEY_BYTES + _NONCE])
    plain = memoryview(message).cast("B")
    sealed = bytearray(sealed_size(len(plain)))
    sealed[:_HEADER] = salt + derived[KEY_BYTES + _NONCE :]
    with memoryview(sealed)[_HEADER:] as body:
        for number in range(len(plain) // _CHUNK + 1):
            chunk = plain[number * _CHUNK : (number + 1) * _CHUNK]
            start = number * _SEALED_CHUNK
            place = body[start : start + len(chunk) + _TAG]
            encrypt((nonce ^ number).to_bytes(_NONCE), chunk, None, place)
    return bytes(sealed)


def seal_randomly(message: "Buffer", key: bytes, context: bytes) -> bytes:
    """Encrypt with a random salt: equal messages become different bytes.

    Args:
        context: What it is for; whoever opens it must say the same.
    """
    encryptor = Cobblestone256Encryptor(key, context)
    return encryptor.update(message) + encryptor.finalize()


def unseal(sealed: "Buffer", key: bytes, context: bytes = BLOCK_CONTEXT) -> bytes:
    """Decrypt a message.

    Raises:
        TrustError: It is for another key or context, cut off, or changed.
    """
    source = memoryview(sealed).cast("B")
    message_size(len(source))
    decryptor = _opened(source, key, context)
    try:
        return decryptor.update(source[_HEADER:]) + decryptor.finalize()
    except InvalidTag:
        raise _changed() from None


def unseal_into(
    sealed: "Buffer",
    key: bytes,
    out: "Buffer",
    *,
    head: int = 0,
    context: bytes = BLOCK_CONTEXT,
) -> bytes:
    """Decrypt a message into memory that is there already; nothing of it is allocated anew.

    Args:
        out: Takes the message from its byte ``head`` on; exactly as large as that is.
        head: How many bytes of the message, at most 16,384, are returned instead of written.

    Returns:
        The first ``head`` bytes.

    Raises:
        TrustError: It is for another key or context, cut off, or changed; ``out`` is all zeros.
    """
    source, target = memoryview(sealed).cast("B"), memoryview(out).cast("B")
    size = message_size(len(source))
    if size != head + len(target):
        raise TrustError(
            f"An encrypted piece holds {size:,} bytes where {head + len(target):,} are expected.",
            hint="The publisher's release is wrong; publish it again.",
        )
    decryptor = _opened(source, key, context)
    try:
        return _decrypt(decryptor, source[_HEADER:], target, head)
    except InvalidTag:
        target[:] = bytes(len(target))
        raise _changed() from None


def seal_to_file(message: "Buffer", file: BinaryIO, key: bytes, context: bytes) -> None:
    """Encrypt with a random salt into a file, with little memory besides the message."""
    encryptor = Cobblestone256Encryptor(key, context)
    plain = memoryview(message).cast("B")
    pieces = (plain[place : place + _PIECE] for place in range(0, len(plain), _PIECE))
    file.writelines(map(encryptor.update, pieces))
    file.write(encryptor.finalize())


def unseal_file(source: BinaryIO, target: BinaryIO, key: bytes, context: bytes) -> None:
    """Decrypt a file into another one, which must not be on a disk.

    Raises:
        TrustError: It is for another key or context, cut off, or changed; use nothing of what
            is in ``target`` then.
    """
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        while piece := source.read(_PIECE):
            target.write(decryptor.update(piece))
        target.write(decryptor.finalize())
    except InvalidTag:
        raise TrustError(
            "An encrypted file is for another key, cut off, or changed.", hint=_AGAIN
        ) from None


def _opened(source: memoryview, key: bytes, context: bytes) -> Cobblestone256Decryptor:
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        decryptor.update(source[:_HEADER])
    except InvalidTag:
        raise TrustError(
            "An encrypted piece is for another key, or its beginning was changed.",
            hint=_AGAIN,
        ) from None
    return decryptor


def _decrypt(
    decryptor: Cobblestone256Decryptor, body: memoryview, target: memoryview, head: int
) -> bytes:
    if len(body) < _SEALED_CHUNK:
        message = decryptor.update(body) + decryptor.finalize()
        target[:] = message[head:]
        return message[:head]
    first = decryptor.update(body[:_SEALED_CHUNK])  # the only chunk that is copied
    place = _CHUNK - head
    target[:place] = first[head:]
    place += decryptor.update_into(body[_SEALED_CHUNK:], target[place:])
    target[place:] = decryptor.finalize()
    return first[:head]


def _changed() -> TrustError:
    return TrustError(
        "An encrypted piece was changed or damaged after it was encrypted.", hint=_AGAIN
    )


def _block_salt(message: "Buffer", key: bytes) -> bytes:
    digest = hashlib.sha256(message).digest()
    return hmac.digest(key, _SALT_DOMAIN + digest, "sha256")[:_SALT]
