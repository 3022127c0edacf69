"""A provisioned box: whom it trusts, who it is, and the keys that open its models.

``provision`` is done once, before a box sees any network::

    STORE/keys/…            its own keys, made on the box
    STORE/identity.json     their public halves, for the publisher
    STORE/certificate.pem   its TLS certificate, for its clients
    STORE/trust/root.json   whom it trusts
    STORE/device.json       who it is; written last: from then on it takes signed bundles only
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import ConfigurationError, StoreError
from outpost_runtime.store import Store
from outpost_runtime.update.device import DeviceFile, read_device, write_device
from outpost_runtime.update.device_identity import encode_identity
from outpost_runtime.update.device_keys import KeyStore, open_keys, provision_keys
from outpost_runtime.update.key_ring import KeyRing, open_ring
from outpost_runtime.update.system import Running
from outpost_runtime.update.system_files import running_system
from outpost_runtime.update.trust_store import TrustStore

IDENTITY = "identity.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """What a provisioned box consists of, as far as updates go.

    Attributes:
        running: The device image that it runs, if it runs one.
    """

    store: Store
    device: DeviceFile
    trust: TrustStore
    own: KeyStore
    keys: KeyRing
    running: Running | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Provisioning:
    """What an operator says of a new box; see :class:`DeviceFile`.

    Attributes:
        tpm: TCTI of the TPM that seals the box's keys; None keeps them in a file.
        hosts: Names and addresses at which clients reach it, for its TLS certificate.
    """

    model: str
    rings: Sequence[str] = ()
    names: Sequence[str] = ()
    targets: Sequence[str] = ()
    sources: Sequence[str] = ()
    tpm: str | None = None
    hosts: Sequence[str] = ()


def provision(folder: Path, root: bytes, wishes: Provisioning) -> Box:
    """Make a store the store of one box; doing it again changes everything but its keys.

    Args:
        folder: The store's.
        root: The publisher's ``root.json``, which nobody else may have had in hands.

    Raises:
        TrustError: The root is none.
        StoreError: The folder cannot be written, or models were added to it by hand.
        ConfigurationError: A name cannot be one, or the TPM is not there.
    """
    # Here and not above: a sixth of a second, at every start of a server.
    from outpost_runtime.update.certificate import (  # noqa: PLC0415
        CERTIFICATE,
        current_certificate,
    )

    if not wishes.sources:
        raise ConfigurationError("A box needs to know where to ask.", hint="Say it with --repo.")
    by_hand = [n for n, slot in Store(folder).slots().items() if slot.active and not slot.release]
    if by_hand:
        raise StoreError(
            f"{folder} has models that were added by hand: {', '.join(by_hand)}.",
            hint="Provision an empty store: what a box serves shall all be signed.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = provision_keys(folder, tpm=wishes.tpm)
        identity = own.identity(wishes.model)
        device = DeviceFile(
            id=identity.id,
            model=wishes.model,
            rings=tuple(wishes.rings),
            names=tuple(wishes.names),
            targets=tuple(wishes.targets),
            sources=tuple(wishes.sources),
        )
        certificate = current_certificate(folder, own, identity.id, wishes.hosts)
        TrustStore.provision(folder / "trust", root)
        write_durably(folder / IDENTITY, encode_identity(identity))
        write_durably(folder / CERTIFICATE, certificate)
        write_device(folder, device)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be provisioned: {error.strerror or error}.",
            hint="Name a folder that you may write, with --store.",
        ) from error
    return open_box(folder)


def open_box(folder: Path) -> Box:
    """Open a provisioned box.

    Raises:
        StoreError: It is not provisioned, or a file of it is damaged.
        NotFoundError: Its keys are gone.
    """
    device = read_device(folder)
    return Box(
        store=Store(folder),
        device=device,
        trust=TrustStore(folder / "trust"),
        own=open_keys(folder),
        keys=open_ring(folder),
        running=running_system(),
    )
