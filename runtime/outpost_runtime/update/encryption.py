"""Stand-in for helper "keys": C2SP chunked encryption as docs/update-format.md says."""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from outpost_runtime.errors import TrustError

_CHUNK, _TAG, _HEAD = 1 << 14, 16, 24 + 32


def seal(message: bytes | bytearray | memoryview, key: bytes) -> bytes:
    """Return the stored bytes of a message; equal messages give equal bytes."""
    digest = hashlib.sha256(message).digest()
    salt = hmac.digest(key, b"outpost.block-salt/1" + digest, "sha256")[:24]
    cipher, base, commitment = _derived(key, salt)
    view = memoryview(message)
    chunks = [view[at : at + _CHUNK] for at in range(0, len(view) + 1, _CHUNK)]
    sealed = (cipher.encrypt(_nonce(base, i), bytes(c), None) for i, c in enumerate(chunks))
    return b"".join((salt, commitment, *sealed))


def unseal(sealed: bytes | bytearray | memoryview, key: bytes) -> bytes:
    """Return a message.

    Raises:
        TrustError: The bytes were not sealed with this key.
    """
    view = memoryview(sealed)
    cipher, base, commitment = _derived(key, bytes(view[:24]))
    if not hmac.compare_digest(commitment, bytes(view[24:_HEAD])):
        raise TrustError("A block is sealed with another key.")
    size = _CHUNK + _TAG
    chunks = [bytes(view[at : at + size]) for at in range(_HEAD, len(view), size)]
    try:
        opened = [cipher.decrypt(_nonce(base, i), chunk, None) for i, chunk in enumerate(chunks)]
    except InvalidTag:
        raise TrustError("A block is damaged.") from None
    if not opened or len(opened[-1]) == _CHUNK:
        raise TrustError("A block is cut off.")
    return b"".join(opened)


def sealed_size(size: int) -> int:
    """Return the stored bytes of a message of so many bytes."""
    return _HEAD + size + _TAG * (size // _CHUNK + 1)


def _derived(key: bytes, salt: bytes) -> tuple[AESGCM, bytes, bytes]:
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + b"outpost.block/1"
    derived = HKDFExpand(SHA256(), 32 + 12 + 32, info).derive(key)
    return AESGCM(derived[:32]), derived[32:44], derived[44:]


def _nonce(base: bytes, index: int) -> bytes:
    return (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")
