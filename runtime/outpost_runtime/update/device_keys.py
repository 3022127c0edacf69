"""A box's own keys, all made from one secret of 32 bytes that lies in STORE/keys.

::

    STORE/keys/device.secret     the secret itself, mode 0600: the default, and the weaker way
    STORE/keys/device.tpm.json   the secret sealed by the box's TPM 2.0 (device_keys_tpm.py)

From the secret come, by HKDF-SHA256 (RFC 5869), the X25519 key that content keys are wrapped for,
the Ed25519 key that reports are signed with, and keys for what the box writes for itself. The
secret is made once. Losing it loses what it decrypts: a new one is a new box to the publisher.
"""

import secrets
from pathlib import Path
from types import ModuleType
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from outpost_runtime.errors import ConfigurationError, NotFoundError, StoreError, unreadable
from outpost_runtime.update.content_keys import WrappedKey, unwrap
from outpost_runtime.update.device_identity import DeviceIdentity
from outpost_runtime.update.secret_files import create_secret, private_folder, read_secret

SECRET_BYTES = 32
KEYS_FOLDER = "keys"
SECRET_FILE = "device.secret"  # noqa: S105 - the name of a file
SEALED_FILE = "device.tpm.json"
DEFAULT_TPM = "device:/dev/tpmrm0"
"""The TPM's TCTI, in tpm2-tss's words: the kernel's resource manager."""

_DOMAIN = b"outpost.device-key/1 "
_IN_A_FILE = "in a file: whoever copies this box's disk has its keys"


class KeyStore(Protocol):
    """The box's own keys. May be used from several threads."""

    def identity(self, model: str) -> DeviceIdentity:
        """Return the public keys, with the box's device model."""

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Decrypt a secret that was wrapped for this box.

        Raises:
            TrustError: It is for another recipient, changed, or another secret.
        """

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a message, 64 bytes."""

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes for what this box writes for itself."""

    def describe(self) -> str:
        """Say where the keys are and how strong that is, in half a sentence for people."""


class SecretKeyStore:
    """Keys made from a secret that is in memory.

    Args:
        secret: 32 random bytes.
        kept: Where it came from, and how strong that is; for people.
    """

    def __init__(self, secret: bytes, kept: str) -> None:
        self._secret = secret
        self._kept = kept
        self._encryption = X25519PrivateKey.from_private_bytes(self._made("encryption"))
        self._signing = Ed25519PrivateKey.from_private_bytes(self._made("signing"))

    def __repr__(self) -> str:
        return f"<keys {self._kept}>"

    def identity(self, model: str) -> DeviceIdentity:
        """Return the public keys, with the box's device model."""
        return DeviceIdentity(
            model=model,
            encryption_key=self._encryption.public_key().public_bytes_raw(),
            signing_key=self._signing.public_key().public_bytes_raw(),
        )

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Decrypt a secret that was wrapped for this box."""
        return unwrap(wrapped, self._encryption)

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a message."""
        return self._signing.sign(message)

    def derive(self, purpose: str) -> bytes:
        """Return a secret for what this box writes for itself."""
        return self._made(f"local {purpose}")

    def describe(self) -> str:
        """Say where the secret is kept."""
        return self._kept

    def _made(self, purpose: str) -> bytes:
        hkdf = HKDF(SHA256(), SECRET_BYTES, salt=None, info=_DOMAIN + purpose.encode())
        return hkdf.derive(self._secret)


def provision_keys(store: Path, *, tpm: str | None = None, pcrs: tuple[int, ...] = ()) -> KeyStore:
    """Make the box's keys, or open those that it has: it gets keys only once.

    Args:
        store: The store's folder.
        tpm: Seal them with the TPM behind this TCTI; None keeps them in a file.
        pcrs: The TPM's registers that must be as now whenever the keys are opened.

    Raises:
        StoreError: The folder cannot be written; the box has keys that cannot be opened, or
            has them in another place than was asked for.
        ConfigurationError: The TPM, or the library for it, is not there.
    """
    folder = store / KEYS_FOLDER
    with private_folder(folder):
        found = [path for path in (folder / SECRET_FILE, folder / SEALED_FILE) if path.exists()]
        wanted = folder / (SECRET_FILE if tpm is None else SEALED_FILE)
        if found and found != [wanted]:
            raise StoreError(
                f"This box has keys already, in {found[0]}.",
                hint="To make it a new box, which needs new grants, remove that file first.",
            )
        if not found:
            _create(wanted, tpm, pcrs)
    return open_keys(store, tpm=tpm or DEFAULT_TPM)


def open_keys(store: Path, *, tpm: str = DEFAULT_TPM) -> KeyStore:
    """Open the keys of a box that was provisioned.

    Args:
        tpm: Where its TPM is, if they are sealed by one.

    Raises:
        NotFoundError: It was not.
        StoreError: They are damaged or not this user's, or the TPM does not give them out.
        ConfigurationError: The TPM, or the library for it, is not there.
    """
    folder = store / KEYS_FOLDER
    try:
        is_sealed = (folder / SEALED_FILE).exists()
    except OSError as error:
        raise unreadable(folder, error) from error
    if is_sealed:
        return _from_tpm(folder / SEALED_FILE, tpm)
    try:
        secret = read_secret(folder / SECRET_FILE, limit=SECRET_BYTES)
    except NotFoundError:
        raise NotFoundError(
            f"This box has no keys in {folder}.", hint="Run 'outpost provision' first."
        ) from None
    if len(secret) != SECRET_BYTES:
        raise StoreError(
            f"{folder / SECRET_FILE} is damaged: it must have {SECRET_BYTES} bytes.",
            hint="Bring it back from a copy; or remove it and provision the box anew.",
        )
    return SecretKeyStore(secret, _IN_A_FILE)


def _create(path: Path, tpm: str | None, pcrs: tuple[int, ...]) -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    if tpm is None:
        create_secret(path, secret)
    else:
        create_secret(path, _sealing().seal_secret(secret, tpm, pcrs))


def _from_tpm(path: Path, tpm: str) -> KeyStore:
    sealing = _sealing()
    document = read_secret(path, limit=sealing.MAX_SEALED_BYTES)
    secret, sealed = sealing.open_secret(document, tpm)
    return SecretKeyStore(secret, sealing.describe(sealed))


def _sealing() -> ModuleType:
    try:
        from outpost_runtime.update import device_keys_tpm  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        raise ConfigurationError(
            f"Keys in a TPM need a library that is not here: {error}.",
            hint="Install 'outpost-runtime[tpm]' and tpm2-tss.",
        ) from error
    return device_keys_tpm
