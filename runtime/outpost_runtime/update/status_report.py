"""What a box says of itself, signed: for a stick today, for the hub on the wire.

The envelope is JSON with the report's exact bytes inside, so that nothing has to be encoded the
same way twice; signed is a fixed prefix and these bytes (Ed25519, RFC 8032)::

    {"format": "outpost-signed-status/1", "device": id, "report": base64, "signature": base64}

Everything here is pure. A report holds no secrets, no inputs and no outputs of models. A box that
was taken over can sign what it likes, and an old report stays a signed one: ``made`` and
``time_bound`` say which of two is newer.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError, TrustError
from outpost_runtime.update.signed_fields import count

REPORT_FORMAT = "outpost-status/1"
SIGNED_FORMAT = "outpost-signed-status/1"
MAX_STATUS_BYTES = 4 << 20
MAX_EVENTS = 200
"""Of the history, and of refusals: a report is a tail, not an archive."""

MAX_REASON = 400
"""Characters of a reason; a longer one is cut."""

_SIGNED_DOMAIN = b"outpost.status/1\0"
_SIGNATURE_BYTES = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_MODELS = 1000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A bundle that a name points at.

    Attributes:
        bundle: Its digest.
        release: Its release counter; 0 for a bundle that was added by hand.
    """

    bundle: str
    version: str
    release: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """What one model name points at."""

    active: Installed | None
    previous: Installed | None
    candidate: Installed | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a model name.

    Attributes:
        time: Seconds since 1970 (UTC) by the box's clock.
        name: The model name; empty where it concerns the whole box.
        what: One word, such as ``activated`` or ``refused``.
        bundle: The digest of the bundle concerned, or None.
        reason: Why, for people; cut at :data:`MAX_REASON` characters.
    """

    time: int
    name: str
    what: str
    bundle: str | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusReport:
    """What a box says of itself.

    Attributes:
        device: The box's id.
        model: Its device model.
        runtime: Version of the runtime.
        keys: Where the box's own keys are, for people: how much its word is worth.
        made: Seconds since 1970 (UTC) by the box's clock, which may be wrong.
        time_bound: The newest signed time that the box has seen: it is not earlier than that.
        history: Newest last, at most :data:`MAX_EVENTS`.
        refusals: What was not installed or did not stay, newest last, as many.
    """

    device: str
    model: str
    runtime: str
    keys: str
    made: int
    time_bound: int
    models: dict[str, ModelStatus]
    history: tuple[Event, ...] = ()
    refusals: tuple[Event, ...] = ()


def sign_status(report: StatusReport, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the signed document.

    Args:
        sign: The box's own: :meth:`KeyStore.sign`.
    """
    payload = canonical_json(_document(report))
    document = {
        "format": SIGNED_FORMAT,
        "device": report.device,
        "report": base64.b64encode(payload).decode(),
        "signature": base64.b64encode(sign(_SIGNED_DOMAIN + payload)).decode(),
    }
    return canonical_json(document)


def claimed_device(data: bytes) -> str:
    """Return the id of the box that a document says it is from, to find its public key by.

    Raises:
        TrustError: It is no signed status.
    """
    return _read(data, _envelope)[0]


def verify_status(data: bytes, public_key: bytes) -> StatusReport:
    """Check a signed status and read it.

    Args:
        public_key: The signing key of the identity of the box that it claims to be from.

    Raises:
        TrustError: It is no signed status, signed by another key, or changed.
    """
    device, payload, signature = _read(data, _envelope)
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(signature, _SIGNED_DOMAIN + payload)
    except InvalidSignature:
        raise TrustError(
            "The status was not signed by this box, or it was changed since.",
            hint="Export it again on the box.",
        ) from None
    report = _read(payload, _report)
    if report.device != device:
        raise TrustError("The status says that it is from one box, and inside from another.")
    return report


def _document(report: StatusReport) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "device": report.device,
        "model": report.model,
        "runtime": report.runtime,
        "keys": report.keys,
        "made": report.made,
        "time_bound": report.time_bound,
        "models": {name: _slots(status) for name, status in report.models.items()},
        "history": [_event_fields(event) for event in report.history[-MAX_EVENTS:]],
        "refusals": [_event_fields(event) for event in report.refusals[-MAX_EVENTS:]],
    }


def _event_fields(event: Event) -> dict[str, Any]:
    # A reason may quote a file name that is no Unicode, which JSON cannot carry.
    reason = event.reason[:MAX_REASON].encode(errors="replace").decode()
    return _fields(event) | {"reason": reason}


def _slots(status: ModelStatus) -> dict[str, Any]:
    slots = {name: getattr(status, name) for name in ModelStatus.__dataclass_fields__}
    return {name: _fields(installed) for name, installed in slots.items() if installed}


def _fields(value: Any) -> dict[str, Any]:
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def _read(data: bytes, read: Callable[[Reader], T]) -> T:
    if len(data) > MAX_STATUS_BYTES:
        raise TrustError(f"The status is larger than {MAX_STATUS_BYTES:,} bytes.")
    try:
        reader = parse_json_object(data, path="status:")
        result = read(reader)
        reader.end()
    except InvalidInputError as error:
        raise TrustError(f"It is no status that this build knows: {error.message}") from error
    return result


def _envelope(reader: Reader) -> tuple[str, bytes, bytes]:
    _expect(reader, SIGNED_FORMAT)
    return (
        _digest(reader, "device"),
        reader.binary("report", most=MAX_STATUS_BYTES),
        reader.binary("signature", least=_SIGNATURE_BYTES, most=_SIGNATURE_BYTES),
    )


def _report(reader: Reader) -> StatusReport:
    _expect(reader, REPORT_FORMAT)
    return StatusReport(
        device=_digest(reader, "device"),
        model=reader.string("model"),
        runtime=reader.string("runtime"),
        keys=reader.string("keys"),
        made=count(reader, "made"),
        time_bound=count(reader, "time_bound"),
        models=_models(reader),
        history=_events(reader, "history"),
        refusals=_events(reader, "refusals"),
    )


def _models(reader: Reader) -> dict[str, ModelStatus]:
    tables = reader.table("models").named_tables()
    if len(tables) > _MAX_MODELS:
        raise reader.fault("models", f"has more than {_MAX_MODELS} names")
    return {name: _model(table) for name, table in tables.items()}


def _model(reader: Reader) -> ModelStatus:
    def slot(key: str) -> Installed | None:
        return reader.optional(key, lambda key: _installed(reader.table(key)))

    status = ModelStatus(
        active=slot("active"), previous=slot("previous"), candidate=slot("candidate")
    )
    reader.end()
    return status


def _installed(reader: Reader) -> Installed:
    installed = Installed(
        bundle=_digest(reader, "bundle"),
        version=reader.string("version"),
        release=count(reader, "release"),
    )
    reader.end()
    return installed


def _events(reader: Reader, key: str) -> tuple[Event, ...]:
    tables = reader.tables(key)
    if len(tables) > MAX_EVENTS:
        raise reader.fault(key, f"has more than {MAX_EVENTS} entries")
    return tuple(map(_event, tables))


def _event(reader: Reader) -> Event:
    event = Event(
        time=count(reader, "time"),
        name=reader.string("name"),
        what=reader.string("what"),
        bundle=reader.optional("bundle", lambda key: _digest(reader, key)),
        reason=reader.string("reason"),
    )
    reader.end()
    return event


def _expect(reader: Reader, known: str) -> None:
    found = reader.string("format")
    if found != known:
        raise reader.fault("format", f"is '{found[:80]}'; this build reads '{known}'")


def _digest(reader: Reader, key: str) -> str:
    value = reader.string(key)
    if not _DIGEST.fullmatch(value):
        raise reader.fault(key, "is no SHA-256 in lower-case hexadecimal digits")
    return value
