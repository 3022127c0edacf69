"""Signing keys in files: ed25519, PKCS#8, encrypted with a passphrase.

``<role>-<id>.pem``, with the first eight digits of the key's id, is the private key (RFC
5958: PBES2 with scrypt of RFC 7914 and AES-256-CBC, which OpenSSL reads too); the ``.pub``
beside it is the public one. The library's own PKCS#8 writer stretches passphrases 2,048 times,
which a graphics card does millions of times a second; with scrypt and these parameters each
guess costs 16 MiB and a tenth of a second or more.
"""

import base64
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from outpost_runtime.bundle import sync_folder
from securesystemslib.signer import (  # type: ignore[attr-defined]  # it marks no name as exported
    CryptoSigner,
    Key,
    SSlibKey,
)

from outpost_export.errors import PublishError

SHORTEST_PASSPHRASE = 8
_MAX_KEY_BYTES = 16_384
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 14, 8, 8
_OID_PBES2 = bytes.fromhex("2a864886f70d01050d")
_OID_SCRYPT = bytes.fromhex("2b06010401da47040b")
_OID_AES_256_CBC = bytes.fromhex("60864801650304012a")

Ask = Callable[[str], str]
"""Gives the passphrase for what is named; a prompt, an environment variable, a test."""


def make_key(folder: Path, role: str, passphrase: str) -> Key:
    """Make a key pair and write both files; returns the public key.

    Raises:
        PublishError: The passphrase is too short, or the folder cannot be written.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise PublishError(
            f"A passphrase of {len(passphrase)} characters is too short.",
            hint=f"Use at least {SHORTEST_PASSPHRASE}; six random words are good.",
        )
    private = Ed25519PrivateKey.generate()
    key = SSlibKey.from_crypto(private.public_key())
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path = folder / f"{role}-{key.keyid[:8]}.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(path, _encrypted(plain, passphrase.encode()), mode=0o600)
        _write_new(path.with_suffix(".pub"), public, mode=0o644)
        sync_folder(folder)
    except OSError as error:
        raise PublishError(f"{path} cannot be written: {error.strerror or error}.") from error
    return key


def read_public_key(path: Path) -> Key:
    """Read a public key in PEM.

    Raises:
        PublishError: There is none that can sign metadata.
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(read_small_file(path)))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PublishError(f"{path} holds no public key of a kind that signs.") from error


def read_signer(path: Path, key: Key, passphrase: str) -> CryptoSigner:
    """Read the private key that belongs to a public one.

    Raises:
        PublishError: The passphrase does not open it, or it is another key's.
    """
    try:
        private = load_pem_private_key(read_small_file(path), passphrase.encode())
        if isinstance(key, SSlibKey):
            return CryptoSigner(private, key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass  # the library's words would be about the file's inside
    raise PublishError(
        f"The passphrase does not open {path}, or it is not the key of the file beside it."
    )


def read_small_file(path: Path, limit: int = _MAX_KEY_BYTES) -> bytes:
    """Return a file's first ``limit`` bytes.

    Raises:
        PublishError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise PublishError(f"{path} cannot be read: {error.strerror or error}.") from error


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    salt, start = os.urandom(16), os.urandom(16)
    stretched = Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
    encryptor = Cipher(AES(stretched.derive(passphrase)), CBC(start)).encryptor()
    padder = PKCS7(AES.block_size).padder()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    numbers = b"".join(_der_integer(n) for n in (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P))
    stretching = _der(0x30, _der(0x06, _OID_SCRYPT) + _der(0x30, _der(0x04, salt) + numbers))
    cipher = _der(0x30, _der(0x06, _OID_AES_256_CBC) + _der(0x04, start))
    algorithm = _der(0x30, _der(0x06, _OID_PBES2) + _der(0x30, stretching + cipher))
    text = base64.encodebytes(_der(0x30, algorithm + _der(0x04, sealed)))
    label = b"ENCRYPTED PRIVATE KEY"
    return b"-----BEGIN " + label + b"-----\n" + text + b"-----END " + label + b"-----\n"


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    long_form = size > 0x7F  # noqa: PLR2004 - X.690, 8.1.3; nothing here reaches 256
    return bytes([tag, 0x81, size] if long_form else [tag, size]) + content


def _der_integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))
