"""Several slots move at once, or none, whenever the power goes or the disk is full."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime.errors import StoreError
from outpost_runtime.store import Store
from outpost_runtime.update.activation import Change
from outpost_runtime.update.slot_files import SlotFiles
from outpost_runtime.update.slots import Event, Slot

_A, _B = "a" * 64, "b" * 64


def _moved(slots, digest, what):
    return Change(
        slots={name: Slot(active=digest) for name in slots},
        events=tuple(Event(at=1, name=name, what=what, bundle=digest) for name in slots),
    )


def _actives(store):
    return {name: slot.active for name, slot in store.slots().items()}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.change(lambda _: _moved(("one", "two", "three"), _A, "first"))
    return store


def test_a_change_moves_all_its_slots_and_writes_history(store):
    store.change(lambda slots: _moved(sorted(slots), _B, "second"))
    assert _actives(store) == {"one": _B, "two": _B, "three": _B}
    assert [line["what"] for line in store.history()] == ["first"] * 3 + ["second"] * 3
    assert not (store.folder / "journal.json").exists()


def test_a_decision_that_fails_changes_nothing(store):
    def decide(_):
        raise StoreError("no")

    with pytest.raises(StoreError):
        store.change(decide)
    assert store.change(lambda _: None) is None
    assert set(_actives(store).values()) == {_A}


_CUT = """
import os, sys
from pathlib import Path
cut_at, calls = int(sys.argv[1]), 0
def dies_at(function):
    def wrapped(*arguments, **named):
        global calls
        calls += 1
        if calls == cut_at:
            os._exit(86)
        return function(*arguments, **named)
    return wrapped
for name in ("fsync", "open", "rename", "replace", "unlink"):
    setattr(os, name, dies_at(getattr(os, name)))
from outpost_runtime.store import Store
from outpost_runtime.update.activation import Change
from outpost_runtime.update.slots import Event, Slot
def decide(slots):
    moved = {name: Slot(active="b" * 64) for name in slots}
    return Change(slots=moved, events=tuple(Event(at=2, name=n, what="second") for n in moved))
Store(Path(sys.argv[2])).change(decide)
"""


@pytest.mark.slow
@pytest.mark.incident("power cut", where="between any two writes of slots, journal and history")
def test_power_cut_between_any_two_writes_moves_all_slots_or_none(store, tmp_path):
    pristine = shutil.copytree(store.folder, tmp_path / "pristine")
    seen, cut_at = set(), 0
    while True:
        cut_at += 1
        shutil.rmtree(store.folder)
        shutil.copytree(pristine, store.folder)
        command = [sys.executable, "-c", _CUT, str(cut_at), store.folder]
        status = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert status.returncode in (0, 86)
        store.change(lambda _: None)  # whoever comes next finishes it
        actives = set(_actives(store).values())
        assert actives in ({_A}, {_B})
        seconds = [line for line in store.history() if line["what"] == "second"]
        assert len(seconds) == (3 if actives == {_B} else 0)
        seen |= actives
        if status.returncode == 0:
            break
    assert cut_at > 8
    assert seen == {_A, _B}


@pytest.mark.incident("disk full", where="any write of slots, journal and history")
@pytest.mark.parametrize("left", range(0, 40, 4))
def test_a_full_disk_at_any_write_moves_all_slots_or_none(tmp_path, left):
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        store = Store(mount / "store")
        store.change(lambda _: _moved(("one", "two", "three"), _A, "first"))
        filler = mount / "filler"
        with filler.open("wb", buffering=0) as file:
            size = shutil.disk_usage(mount).free - left * 1024
            file.write(bytes(max(size, 0)))
        try:
            store.change(lambda slots: _moved(sorted(slots), _B, "second"))
        except StoreError as error:
            assert "No space left on device" in error.message  # noqa: PT017
        filler.unlink()
        store.change(lambda _: None)
        assert set(_actives(store).values()) in ({_A}, {_B})
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_torn_line_of_history_hides_nothing_else(store):
    with (store.folder / "history.jsonl").open("ab") as file:
        file.write(b'{"number": 1, "na')
    store.change(lambda slots: _moved(sorted(slots), _B, "second"))
    assert [line["what"] for line in store.history()] == ["first"] * 3 + ["second"] * 3


def test_history_is_bounded(store):
    for _ in range(3):
        with (store.folder / "history.jsonl").open("ab") as file:
            file.write(b'{"number": 1, "what": "filler"}\n' * 40_000)
        store.change(lambda slots: _moved(sorted(slots), _B, "second"))
    assert (store.folder / "history.jsonl").stat().st_size < 200_000


def test_a_history_of_another_user_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StoreError, match=r"history\.jsonl cannot be read: Permission denied"):
        SlotFiles(tmp_path).history()
