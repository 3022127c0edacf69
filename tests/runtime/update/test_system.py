"""A box's system comes as a release, and moves by what the box starts with."""

import dataclasses
import shutil
from datetime import datetime

import pytest
from outpost_runtime.bundle import read_bundle, write_manifest
from outpost_runtime.cli.system import _next_system
from outpost_runtime.errors import StoreError, TrustError, UnsupportedError
from outpost_runtime.store import Store
from outpost_runtime.update import system_files
from outpost_runtime.update.activation import pin
from outpost_runtime.update.agent import circumstances
from outpost_runtime.update.alone import pass_gates
from outpost_runtime.update.box import open_box
from outpost_runtime.update.policy import UpdatePolicy, Window, why_wait
from outpost_runtime.update.slots import SYSTEM
from outpost_runtime.update.system import Running, check_system, parse_os_release
from outpost_runtime.update.system_files import NextSystem, running_system

from tests.support.candidates import version_of
from tests.support.fixtures import CLASSIFIER
from tests.support.fleet import Fleet
from tests.support.systems import packed

ONE = Running(image="outpost", number=1)
TWO = Running(image="outpost", number=2)


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture
def box(fleet, tmp_path):
    """A box that runs system 1 and wants one model only."""
    made = fleet.box(tmp_path / "store", names=("tiny-classifier",))
    return dataclasses.replace(made, running=ONE)


def _words(box):
    return [line["what"] for line in box.store.history() if line["name"] == SYSTEM]


def _bring(fleet, box, bundle):
    fleet.publish(bundle)
    return fleet.update(box)


def test_a_system_comes_as_models_do_and_waits_for_the_next_start(fleet, box, tmp_path):
    bundle = packed(tmp_path, 2)
    assert _bring(fleet, box, bundle).staged == (SYSTEM,)
    pass_gates(box.store)  # the gate of models leaves it alone
    assert box.store.slot(SYSTEM).candidate.bundle == bundle.digest
    assert box.store.names() == []


def test_its_files_are_what_was_packed(fleet, box, tmp_path):
    bundle = packed(tmp_path, 2)
    _bring(fleet, box, bundle)
    assert NextSystem(box.store, ONE).stage() == "2"
    folder = box.store.folder / "system"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: bundle.read(name) for name in bundle.manifest.files
    }
    holes = next(folder.glob("*.system.*"))
    assert holes.stat().st_blocks * 512 < holes.stat().st_size  # a slot is mostly empty


def test_a_system_that_answers_is_kept_and_its_files_go(fleet, box, tmp_path):
    bundle = packed(tmp_path, 2)
    _bring(fleet, box, bundle)
    before = NextSystem(box.store, ONE)
    before.stage()
    before.note_try()
    assert NextSystem(box.store, TWO).settle() == "system 2 is committed."
    slot = box.store.slot(SYSTEM)
    assert (slot.active, slot.candidate, slot.probation) == (bundle.digest, None, None)
    assert not (box.store.folder / "system").exists()
    after = dataclasses.replace(box, running=TWO)
    assert fleet.update(after).reasons == {SYSTEM: "is up to date"}


def test_a_system_that_did_not_hold_is_never_tried_again(fleet, box, tmp_path):
    bundle = packed(tmp_path, 3)
    _bring(fleet, box, bundle)
    system = NextSystem(box.store, ONE)
    system.stage()
    system.note_try()
    assert "1 has come back by itself" in NextSystem(box.store, ONE).settle()
    assert box.store.slot(SYSTEM).refusal(bundle.digest) is not None
    assert system.stage() is None
    assert "has failed here before" in fleet.update(box).reasons[SYSTEM]
    assert _words(box) == ["staged", "refused"]


def test_a_better_one_comes_after_one_that_did_not_hold(fleet, box, tmp_path):
    _bring(fleet, box, packed(tmp_path, 3))
    system = NextSystem(box.store, ONE)
    system.stage()
    system.note_try()
    system.settle()
    _bring(fleet, box, packed(tmp_path, 4))
    assert system.stage() == "4"


def test_a_restart_before_the_try_is_no_failure(fleet, box, tmp_path):
    _bring(fleet, box, packed(tmp_path, 2))
    NextSystem(box.store, ONE).stage()
    assert NextSystem(box.store, ONE).settle() == "system 2 waits"
    assert NextSystem(box.store, ONE).stage() == "2"


def test_a_system_that_runs_already_is_not_installed_again(fleet, box, tmp_path):
    bundle = packed(tmp_path, 1)
    _bring(fleet, box, bundle)
    assert NextSystem(box.store, ONE).stage() is None
    assert box.store.slot(SYSTEM).active == bundle.digest


def test_systems_and_models_take_turns(fleet, box, tmp_path):
    fleet.publish(read_bundle(CLASSIFIER))
    _bring(fleet, box, packed(tmp_path, 2))
    system = NextSystem(box.store, ONE)
    assert system.stage() is None  # the model waits for its gate
    pass_gates(box.store)
    assert box.store.slot("tiny-classifier").active is not None
    assert system.stage() == "2"


def test_models_go_on_while_a_system_waits(fleet, box, tmp_path):
    _bring(fleet, box, packed(tmp_path, 2))
    bundle = version_of(CLASSIFIER, tmp_path, "2")
    assert _bring(fleet, box, bundle).staged == ("tiny-classifier",)
    pass_gates(box.store)
    assert box.store.slot("tiny-classifier").active == bundle.digest
    assert box.store.slot(SYSTEM).candidate is not None


def test_another_image_s_system_and_a_machine_without_image_take_nothing(fleet, box, tmp_path):
    outcome = _bring(fleet, box, packed(tmp_path, 2, "outpost-branch"))
    assert outcome.reasons == {SYSTEM: "is built for system-outpost-branch only"}
    plain = dataclasses.replace(box, running=None)
    assert fleet.update(plain).staged == ()


@pytest.mark.parametrize(
    ("changes", "running", "reason"),
    [
        ({}, Running(image="outpost", number=3), "older than 3"),
        ({}, Running(image="outpost-branch", number=1), "not of outpost-branch"),
        ({"name": "tiny-classifier"}, ONE, "is no system"),
        ({"version": "2b"}, ONE, "not its own"),
    ],
)
def test_what_is_no_newer_system_of_this_image_is_refused(tmp_path, changes, running, reason):
    manifest = dataclasses.replace(packed(tmp_path, 2).manifest, **changes)
    with pytest.raises(TrustError, match=reason):
        check_system(manifest, running)


def test_a_model_under_the_name_of_systems_is_refused(fleet, box, tmp_path):
    copy = version_of(CLASSIFIER, tmp_path, "2", name=SYSTEM)
    model = write_manifest(copy.folder, dataclasses.replace(copy.manifest, target="system-outpost"))
    _bring(fleet, box, model)
    assert NextSystem(box.store, ONE).stage() is None
    assert "is no system" in box.store.slot(SYSTEM).refusal(model.digest).reason


def test_a_full_disk_leaves_no_half_system(fleet, box, tmp_path, monkeypatch):
    _bring(fleet, box, packed(tmp_path, 2))
    monkeypatch.setattr(system_files, "SPARE_BYTES", 1 << 60)
    with pytest.raises(StoreError, match="no room"):
        NextSystem(box.store, ONE).stage()
    assert not (box.store.folder / "system").exists()
    monkeypatch.undo()
    assert NextSystem(box.store, ONE).stage() == "2"


def test_room_is_needed_for_what_is_written_and_not_for_holes(fleet, box, tmp_path, monkeypatch):
    _bring(fleet, box, packed(tmp_path, 2, system_bytes=48 << 20))
    usage = shutil.disk_usage(box.store.folder)
    monkeypatch.setattr(system_files, "SPARE_BYTES", usage.free - (40 << 20))
    assert NextSystem(box.store, ONE).stage() == "2"


def test_a_pinned_system_stays(fleet, box, tmp_path):
    _bring(fleet, box, packed(tmp_path, 2))
    box.store.change(lambda slots: pin(SYSTEM, slots[SYSTEM], 1))
    assert NextSystem(box.store, ONE).stage() is None
    assert fleet.update(box).reasons[SYSTEM] == "is pinned"


def test_what_was_never_staged_cannot_be_noted_as_tried(box):
    with pytest.raises(StoreError):
        NextSystem(box.store, ONE).note_try()
    assert NextSystem(box.store, ONE).settle() == "no system waits"


def test_only_an_image_of_ours_is_one(tmp_path):
    text = 'NAME="Debian"\nIMAGE_ID="outpost"\nIMAGE_VERSION=12\n'
    assert parse_os_release(text) == Running(image="outpost", number=12)
    assert parse_os_release('NAME="Debian"\nVERSION_ID="12"\n') is None
    assert parse_os_release("IMAGE_ID=outpost\nIMAGE_VERSION=rolling\n") is None
    assert running_system(tmp_path / "none") is None


def test_a_box_knows_what_it_runs(fleet, tmp_path, monkeypatch):
    release = tmp_path / "os-release"
    release.write_text("IMAGE_ID=outpost\nIMAGE_VERSION=1\n")
    fleet.box(tmp_path / "store")
    monkeypatch.setattr(system_files.running_system, "__defaults__", (release,))
    assert open_box(tmp_path / "store").running == ONE


def test_a_window_holds_for_systems_too():
    policy = UpdatePolicy(windows=(Window(begin=60, end=120),))
    at = [datetime(2026, 11, 27, hour) for hour in (1, 3)]  # noqa: DTZ001 - local on purpose
    assert [why_wait(policy, circumstances(policy, now)) for now in at] == [
        "", "no window is open",
    ]  # fmt: skip


def test_the_command_refuses_a_machine_that_runs_no_image(tmp_path):
    with pytest.raises(UnsupportedError, match="no device image"):
        _next_system(tmp_path)
    assert Store(tmp_path).slots() == {}
