"""Slots on disk: several move at once, or none, whenever the power goes.

::

    STORE/slots/<name>.json    what a model name points at
    STORE/journal.json         what is being done; gone when it is done
    STORE/history.jsonl        what was done, a line each

1. The journal is written: from here on the change will happen.
2. Every slot file is replaced.
3. The history gets its lines.
4. The journal is removed.

Whoever changes the store next does what a journal still says. Readers need no lock: a file has its
old or its new content.
"""

import json
import os
from pathlib import Path

from outpost_runtime.bundle import sync_folder, write_durably
from outpost_runtime.documents import Reader
from outpost_runtime.errors import InvalidInputError, NotFoundError, StoreError, unreadable
from outpost_runtime.update.activation import Change
from outpost_runtime.update.slots import (
    MAX_SLOT_BYTES,
    Event,
    Journal,
    Slot,
    encode_journal,
    encode_slot,
    event_fields,
    parse_journal,
    parse_slot,
)

_MAX_JOURNAL_BYTES = 4 << 20
_MOST_HISTORY_BYTES = 1 << 20
_KEPT_LINES = 500


class SlotFiles:
    """The slots of a store; whoever calls :meth:`apply` or :meth:`redo` holds the store's lock.

    Args:
        folder: The store's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.slots = folder / "slots"
        self._journal = folder / "journal.json"
        self._history = folder / "history.jsonl"

    def names(self) -> list[str]:
        """Return every model name that has a slot."""
        return sorted(path.name.removesuffix(".json") for path in self.slots.glob("[!.]*.json"))

    def read(self, name: str) -> Slot:
        """Return what a model name points at.

        Raises:
            NotFoundError: There is no slot of that name.
            StoreError: The slot file is damaged.
        """
        path = self.slots / f"{name}.json"
        try:
            return parse_slot(_bounded(path, MAX_SLOT_BYTES), str(path))
        except FileNotFoundError:
            raise NotFoundError(f"There is no model '{name}' in the store.") from None
        except (InvalidInputError, OSError) as error:
            raise StoreError(
                f"The slot file {path} is damaged: {error}",
                hint="Add the model's bundle again.",
            ) from error

    def apply(self, change: Change) -> None:
        """Make a change that survives everything once this returns.

        Raises:
            OSError: The disk does not take it. If the journal was written before that, the change
                is made by whoever changes the store next.
        """
        journal = Journal(
            number=self._last_number() + 1, slots=dict(change.slots), events=change.events
        )
        write_durably(self._journal, encode_journal(journal))
        self._carry_out(journal)

    def redo(self) -> None:
        """Finish a change that was cut off.

        Raises:
            OSError: The disk does not take it.
        """
        try:
            data = _bounded(self._journal, _MAX_JOURNAL_BYTES)
        except FileNotFoundError:
            return
        try:
            self._carry_out(parse_journal(data, str(self._journal)))
        except InvalidInputError:  # it was written whole, so the disk has changed it since
            self._remove_journal()

    def history(self) -> list[dict[str, object]]:
        """Return what was done, oldest first; damaged lines are left out.

        Raises:
            StoreError: It may not be read.
        """
        try:
            lines = _bounded(self._history, 2 * _MOST_HISTORY_BYTES).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self._history, error) from error
        return [found for line in lines if (found := _line(line)) is not None]

    def _carry_out(self, journal: Journal) -> None:
        self.slots.mkdir(exist_ok=True)
        for name, slot in journal.slots.items():
            write_durably(self.slots / f"{name}.json", encode_slot(slot))
        if self._last_number() < journal.number:
            self._append(journal.number, journal.events)
        self._remove_journal()

    def _append(self, number: int, events: tuple[Event, ...]) -> None:
        lines = [{"number": number, **event_fields(event)} for event in events]
        # All lines of a change at once: the last one tells whether it was written.
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        if self._history.exists() and self._history.stat().st_size > _MOST_HISTORY_BYTES:
            kept = self._history.read_bytes().splitlines(keepends=True)[-_KEPT_LINES:]
            write_durably(self._history, b"".join(kept))
        with self._history.open("ab") as file:
            if file.tell() and not _ends_with_newline(self._history):
                data = b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _last_number(self) -> int:
        numbers = [line.get("number") for line in self.history()[-1:]]
        return next((number for number in numbers if isinstance(number, int)), 0)

    def _remove_journal(self) -> None:
        self._journal.unlink(missing_ok=True)
        sync_folder(self._folder)


def _bounded(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidInputError(f"{path} is larger than {most} bytes.")
    return data


def _line(data: bytes) -> dict[str, object] | None:
    try:
        fields: dict[str, object] = Reader(json.loads(data), path="history:").raw()
    except (ValueError, InvalidInputError):
        return None
    return fields


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
