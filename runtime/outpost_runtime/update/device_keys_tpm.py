"""The box's secret sealed by its TPM 2.0: of no use on another box. Extra ``outpost-runtime[tpm]``.

Specification: TCG TPM 2.0 Library, parts 1 and 3, through tpm2-tss. The secret is a sealed data
object under a storage key (ECC P-256) that the TPM makes again from its own seed each time, so
nothing stays in the TPM and provisioning can be cut off anywhere. What crosses the wires between
processor and TPM is encrypted (a salted session, AES-128-CFB).

The secret is in the process's memory while the box runs: TPMs know neither X25519 nor Ed25519.
Registers (PCRs) that must be as they were are possible, and a risk: an update of firmware or boot
loader that changes one takes the box's keys away.
"""

import base64
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPMS_SENSITIVE_CREATE,
    TSS2_Exception,
)

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import ConfigurationError, InvalidInputError, StoreError

SEALED_FORMAT = "outpost-tpm-secret/1"
MAX_SEALED_BYTES = 1 << 13

_FIXED = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA
_STORAGE = (
    _FIXED
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)
_ENCRYPTED = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
_LAST_REGISTER = 23


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedSecret:
    """What a TPM needs to give a secret out.

    Attributes:
        pcrs: Registers that must be as they were, of the SHA-256 bank.
        parent: Name of the storage key, which says whether this is the same TPM.
        public: The sealed object's public area.
        private: Its private area, which only that TPM can decrypt.
    """

    pcrs: tuple[int, ...]
    parent: bytes
    public: bytes
    private: bytes


def seal_secret(secret: bytes, tcti: str, pcrs: tuple[int, ...]) -> bytes:
    """Have the TPM encrypt a secret of at most 128 bytes; returns the document to keep.

    Raises:
        ConfigurationError: The TPM is not there, or does not do that.
    """
    if not _exist(pcrs):
        raise ConfigurationError(f"A TPM's registers are numbered 0 to {_LAST_REGISTER}.")
    with ExitStack() as stack:
        tpm = stack.enter_context(_connected(tcti))
        try:
            parent, name = _storage_key(tpm, stack)
            template = _template(tpm, stack, pcrs)
            session = _session(tpm, stack, parent, TPM2_SE.HMAC)
            sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=secret))
            private, public, *_ = tpm.create(parent, sensitive, template, session1=session)
        except TSS2_Exception as error:
            raise ConfigurationError(f"The TPM {tcti} cannot keep keys: {error}.") from error
        return _encode(
            SealedSecret(pcrs=pcrs, parent=name, public=public.marshal(), private=private.marshal())
        )


def open_secret(document: bytes, tcti: str) -> tuple[bytes, SealedSecret]:
    """Have the TPM decrypt a secret.

    Raises:
        ConfigurationError: The TPM is not there.
        StoreError: The document is damaged; it is another TPM, or one that was cleared; or the
            registers are not as they were.
    """
    sealed = _parse(document)
    with ExitStack() as stack:
        tpm = stack.enter_context(_connected(tcti))
        try:
            parent, name = _storage_key(tpm, stack)
            if name != sealed.parent:
                raise _foreign()
            return _unsealed(tpm, stack, parent, sealed), sealed
        except TSS2_Exception as error:
            raise StoreError(
                f"The TPM {tcti} does not give this box's keys out: {error}.",
                hint="The file of sealed keys may be damaged: bring it back from a copy.",
            ) from error


def describe(sealed: SealedSecret) -> str:
    """Say how strong that is, in half a sentence for people."""
    text = "sealed by this box's TPM 2.0: a copied disk is of no use without the box"
    if sealed.pcrs:
        numbers = ", ".join(map(str, sealed.pcrs))
        text += f", nor with another state of its registers {numbers}"
    return text


@contextmanager
def _connected(tcti: str) -> Iterator[ESAPI]:
    try:
        tpm = ESAPI(tcti)
    except (TSS2_Exception, ValueError) as error:
        raise ConfigurationError(
            f"The TPM {tcti} cannot be reached: {error}.",
            hint="Name another one, or keep the keys in a file, which is weaker.",
        ) from error
    try:
        yield tpm
    finally:
        tpm.close()


def _storage_key(tpm: ESAPI, stack: ExitStack) -> tuple[Any, bytes]:
    template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=_STORAGE)
    handle, public, *_ = tpm.create_primary(None, template, ESYS_TR.OWNER)
    stack.callback(tpm.flush_context, handle)
    return handle, bytes(public.get_name())


def _template(tpm: ESAPI, stack: ExitStack, pcrs: tuple[int, ...]) -> TPM2B_PUBLIC:
    if not pcrs:
        return TPM2B_PUBLIC.parse("keyedhash", objectAttributes=_FIXED | TPMA_OBJECT.USERWITHAUTH)
    trial = _session(tpm, stack, ESYS_TR.NONE, TPM2_SE.TRIAL)
    tpm.policy_pcr(trial, None, _selection(pcrs))
    policy = bytes(tpm.policy_get_digest(trial))
    return TPM2B_PUBLIC.parse("keyedhash", objectAttributes=_FIXED, authPolicy=policy)


def _session(tpm: ESAPI, stack: ExitStack, parent: Any, kind: TPM2_SE) -> Any:
    session = tpm.start_auth_session(parent, ESYS_TR.NONE, kind, "aes128cfb", TPM2_ALG.SHA256)
    stack.callback(tpm.flush_context, session)
    if kind != TPM2_SE.TRIAL:
        tpm.trsess_set_attributes(session, _ENCRYPTED)
    return session


def _unsealed(tpm: ESAPI, stack: ExitStack, parent: Any, sealed: SealedSecret) -> bytes:
    private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
    public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
    item = tpm.load(parent, private, public)
    stack.callback(tpm.flush_context, item)
    if not sealed.pcrs:
        session = _session(tpm, stack, parent, TPM2_SE.HMAC)
        return bytes(tpm.unseal(item, session1=session))
    session = _session(tpm, stack, parent, TPM2_SE.POLICY)
    tpm.policy_pcr(session, None, _selection(sealed.pcrs))
    try:
        return bytes(tpm.unseal(item, session1=session))
    except TSS2_Exception as error:
        raise StoreError(
            f"The TPM keeps this box's keys back: its registers {sealed.pcrs} are not as they "
            f"were when the keys were made ({error}).",
            hint="Undo the change of firmware or boot loader, or provision the box anew.",
        ) from error


def _selection(pcrs: tuple[int, ...]) -> str:
    return "sha256:" + ",".join(map(str, pcrs))


def _encode(sealed: SealedSecret) -> bytes:
    document: dict[str, Any] = {"format": SEALED_FORMAT, "pcrs": list(sealed.pcrs)}
    for field in ("parent", "public", "private"):
        document[field] = base64.b64encode(getattr(sealed, field)).decode()
    return canonical_json(document)


def _parse(document: bytes) -> SealedSecret:
    try:
        reader = parse_json_object(document, path="sealed keys:")
        found = reader.string("format")
        if found != SEALED_FORMAT:
            raise reader.fault("format", f"is '{found[:80]}'; this build reads '{SEALED_FORMAT}'")
        return _sealed(reader)
    except InvalidInputError as error:
        raise StoreError(
            f"This box's keys are damaged: {error.message}",
            hint="Bring the file back from a copy; or remove it and provision the box anew.",
        ) from error


def _sealed(reader: Reader) -> SealedSecret:
    sealed = SealedSecret(
        pcrs=tuple(reader.list_of("pcrs", int)),
        parent=reader.binary("parent", most=128),
        public=reader.binary("public", most=1024),
        private=reader.binary("private", most=1024),
    )
    reader.end()
    if not _exist(sealed.pcrs):
        raise reader.fault("pcrs", f"must be numbers of registers, 0 to {_LAST_REGISTER}")
    return sealed


def _exist(pcrs: tuple[int, ...]) -> bool:
    return all(0 <= pcr <= _LAST_REGISTER for pcr in pcrs)


def _foreign() -> StoreError:
    return StoreError(
        "This box's keys were sealed by another TPM, or by this one before it was cleared.",
        hint="Remove the file of sealed keys and provision the box anew; it needs new grants.",
    )
