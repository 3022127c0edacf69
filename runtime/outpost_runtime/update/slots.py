"""Slots: what a model name points at, as a document.

A slot names up to three bundles: the candidate that has not passed the gate yet, the active one
that is served, and the previous one that it goes back to. :mod:`activation` decides how they move.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.latency import Figure, UsualWait

MAX_SLOT_BYTES = 1 << 16
MAX_REFUSALS = 16

SYSTEM = "system"
"""The name of the box's own system: its slot is no model's, and moves as update/system.py says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A bundle that is complete and verified, and waits for the gate.

    Attributes:
        release: Its release counter.
        with_base: Digest of the base that has to be activated together with it, or None.
    """

    bundle: str
    release: int
    with_base: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A bundle that this box does not try again.

    Attributes:
        at: Seconds since 1970.
        reason: One sentence for people.
    """

    bundle: str
    at: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """How a model has done on live traffic.

    Attributes:
        requests: How many were answered.
        failures: How many failed by the model's or the box's fault.
        waits: How long its clients waited.
    """

    requests: int = 0
    failures: int = 0
    waits: tuple[UsualWait, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Probation:
    """What is known of a new active bundle.

    Attributes:
        watched: Seconds that servers which stopped in order have served it.
        starts: Servers that opened it and did not stop in order.
        before: How the bundle before it did.
    """

    watched: int = 0
    starts: int = 0
    before: Behaviour = Behaviour()


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What a model name points at.

    Attributes:
        active: Digest of the bundle that is served, or None before the first one.
        previous: The one before it, or None.
        release: Release counter of the active one; 0 for bundles that were added by hand.
        probation: None when the active one is committed.
        refused: Newest last.
        pinned: No update is taken.
    """

    active: str | None = None
    previous: str | None = None
    release: int = 0
    previous_release: int = 0
    candidate: Candidate | None = None
    probation: Probation | None = None
    refused: tuple[Refusal, ...] = ()
    pinned: bool = False

    def names(self) -> tuple[str, ...]:
        """Every bundle that has to stay."""
        candidate = None if self.candidate is None else self.candidate.bundle
        return tuple(d for d in (self.active, self.previous, candidate) if d is not None)

    def refusal(self, bundle: str) -> Refusal | None:
        """Why a bundle is not tried again, or None."""
        return next((refusal for refusal in self.refused if refusal.bundle == bundle), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of a box's history.

    Attributes:
        at: Seconds since 1970, by the box's own clock.
        what: ``staged``, ``activated``, ``committed``, ``refused``, ``back``, ``pinned``, ….
    """

    at: int
    name: str
    what: str
    bundle: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """Slots as they shall be, and the history's lines that belong to it; written before it is done.

    Attributes:
        number: Counts up; the history remembers which were done.
    """

    number: int
    slots: dict[str, Slot] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


def encode_slot(slot: Slot) -> bytes:
    """Return the bytes of a slot file."""
    return canonical_json(_plain(slot))


def parse_slot(data: bytes, path: str) -> Slot:
    """Read a slot file.

    Raises:
        InvalidInputError: It is none that this build knows.
    """
    return _slot(parse_json_object(data, path=path))


def encode_journal(journal: Journal) -> bytes:
    """Return the bytes of a journal."""
    return canonical_json(_plain(journal))


def parse_journal(data: bytes, path: str) -> Journal:
    """Read a journal.

    Raises:
        InvalidInputError: It is none that this build knows.
    """
    reader = parse_json_object(data, path=path)
    slots = reader.table("slots").named_tables()
    journal = Journal(
        number=reader.integer("number"),
        slots={name: _slot(table) for name, table in slots.items()},
        events=tuple(_event(table) for table in reader.tables("events")),
    )
    reader.end()
    return journal


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as JSON shows it."""
    fields: dict[str, Any] = _plain(event)
    return fields


def _slot(reader: Reader) -> Slot:
    slot = Slot(
        active=reader.optional("active", reader.string),
        previous=reader.optional("previous", reader.string),
        release=reader.integer("release", 0),
        previous_release=reader.integer("previous_release", 0),
        candidate=reader.optional("candidate", lambda key: _candidate(reader.table(key))),
        probation=reader.optional("probation", lambda key: _probation(reader.table(key))),
        refused=tuple(reader.optional("refused", lambda key: _refusals(reader, key)) or ()),
        pinned=reader.boolean("pinned", default=False),
    )
    reader.end()
    return slot


def _candidate(reader: Reader) -> Candidate:
    candidate = Candidate(
        bundle=reader.string("bundle"),
        release=reader.integer("release"),
        with_base=reader.optional("with_base", reader.string),
    )
    reader.end()
    return candidate


def _probation(reader: Reader) -> Probation:
    probation = Probation(
        watched=reader.integer("watched"),
        starts=reader.integer("starts"),
        before=_behaviour(reader.table("before")),
    )
    reader.end()
    return probation


def _behaviour(reader: Reader) -> Behaviour:
    for of_another_format in ("seconds", "units"):  # of 0.1: running time, which said too little
        reader.number(of_another_format, 0)
    behaviour = Behaviour(
        requests=reader.integer("requests"),
        failures=reader.integer("failures"),
        waits=tuple(_waits(reader)),
    )
    reader.end()
    return behaviour


def _waits(reader: Reader) -> Iterator[UsualWait]:
    for table in reader.optional("waits", reader.tables) or ():
        figure = table.string("figure")
        if figure not in list(Figure):
            raise table.fault("figure", f"is '{figure[:40]}', which is none")
        yield UsualWait(
            figure=Figure(figure),
            beside=table.integer("beside"),
            work=table.integer("work"),
            count=table.integer("count"),
            seconds=table.number("seconds"),
        )
        table.end()


def _refusals(reader: Reader, key: str) -> list[Refusal]:
    refusals = []
    for table in reader.tables(key):
        refusals.append(
            Refusal(
                bundle=table.string("bundle"), at=table.integer("at"), reason=table.string("reason")
            )
        )
        table.end()
    return refusals


def _event(reader: Reader) -> Event:
    event = Event(
        at=reader.integer("at"),
        name=reader.string("name"),
        what=reader.string("what"),
        bundle=reader.optional("bundle", reader.string),
        reason=reader.string("reason"),
    )
    reader.end()
    return event


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
