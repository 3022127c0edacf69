import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime.bundle import read_bundle, write_manifest
from outpost_runtime.errors import BundleError, StoreError, UnsupportedError
from outpost_runtime.store import Store

from tests.support.fixtures import CLASSIFIER, DECODER, EMBEDDER


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def _copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _state(store):
    return sorted(
        (path.relative_to(store.folder).as_posix(), path.read_bytes())
        for path in store.folder.rglob("*")
        if path.is_file()
    )


def _second_version(tmp_path, version):
    folder = Path(shutil.copytree(DECODER, tmp_path / f"version-{version}"))
    manifest = dataclasses.replace(read_bundle(folder).manifest, version=version)
    write_manifest(folder, manifest)
    return folder


def test_an_added_bundle_is_active_and_byte_equal(store):
    stored = store.add(DECODER)
    assert store.slot("tiny-decoder").active == stored.digest == read_bundle(DECODER).digest
    names = {path.name for path in DECODER.iterdir()}
    assert names == {path.name for path in stored.folder.iterdir()}
    assert all((stored.folder / n).read_bytes() == (DECODER / n).read_bytes() for n in names)


def test_adding_twice_changes_nothing(store):
    store.add(DECODER)
    before = _state(store)
    store.add(DECODER)
    assert _state(store) == before


def test_the_previous_version_is_kept_and_the_one_before_it_is_collected(store, tmp_path):
    digests = [store.add(_second_version(tmp_path, version)).digest for version in "123"]
    slot = store.slot("tiny-decoder")
    assert (slot.active, slot.previous) == (digests[2], digests[1])
    assert {p.name for p in (store.folder / "bundles").iterdir()} == set(digests[1:])


def test_a_flipped_bit_is_found_and_named_and_the_store_stays_as_it_was(store, tmp_path):
    store.add(EMBEDDER)
    before = _state(store)
    broken = _copy(DECODER, tmp_path)
    data = bytearray((broken / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (broken / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data is not the file"):
        store.add(broken)
    assert _state(store) == before


@pytest.mark.parametrize("size", [0, 100, 1_000_000])
def test_a_cut_or_grown_file_is_refused(store, tmp_path, size):
    broken = _copy(DECODER, tmp_path)
    os.truncate(broken / "model.onnx.data", size)
    with pytest.raises(BundleError, match=r"model\.onnx\.data"):
        store.add(broken)
    assert store.names() == []


def test_a_missing_file_is_named(store, tmp_path):
    broken = _copy(DECODER, tmp_path)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        store.add(broken)


def test_a_file_that_the_manifest_does_not_list_is_refused(store, tmp_path):
    broken = _copy(DECODER, tmp_path)
    (broken / "extra.so").write_bytes(b"hello")
    with pytest.raises(BundleError, match=r"extra\.so is not listed"):
        store.add(broken)


def test_a_link_out_of_the_bundle_is_refused(store, tmp_path):
    broken = _copy(DECODER, tmp_path)
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer.json").symlink_to(DECODER / "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not listed"):
        store.add(broken)


def test_a_folder_that_is_no_bundle_is_refused(store, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        store.add(tmp_path)


def test_a_bundle_that_rotted_in_the_store_is_replaced_by_adding_it_again(store):
    stored = store.add(DECODER)
    (stored.folder / "model.onnx").write_bytes(b"rot")
    store.add(DECODER)
    assert (stored.folder / "model.onnx").read_bytes() == (DECODER / "model.onnx").read_bytes()


def test_a_damaged_slot_file_says_what_to_do(store):
    store.add(DECODER)
    (store.folder / "slots" / "tiny-decoder.json").write_bytes(b"{")
    with pytest.raises(StoreError, match="Add the model's bundle again"):
        store.slot("tiny-decoder")


def test_a_damaged_slot_file_is_healed_by_adding_and_harms_no_other_model(store):
    store.add(DECODER)
    (store.folder / "slots" / "tiny-decoder.json").write_bytes(b"{")
    store.add(EMBEDDER)
    assert store.slot("tiny-embedder").active
    store.add(DECODER)
    assert store.slot("tiny-decoder").active == read_bundle(DECODER).digest


def test_a_bundle_for_another_runtime_is_refused_and_the_store_stays_as_it_was(store, tmp_path):
    store.add(DECODER)
    before = _state(store)
    foreign = _copy(DECODER, tmp_path)
    manifest = dataclasses.replace(read_bundle(foreign).manifest, target="cuda-fp16")
    write_manifest(foreign, manifest)
    with pytest.raises(UnsupportedError, match="built for cuda-fp16"):
        store.add(foreign)
    assert _state(store) == before


def test_a_pipe_in_the_place_of_a_file_does_not_hang(store, tmp_path):
    broken = _copy(DECODER, tmp_path)
    (broken / "tokenizer.json").unlink()
    os.mkfifo(broken / "tokenizer.json")
    with pytest.raises(BundleError, match="is not a file"):
        store.add(broken)


def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be changed"):
        Store(tmp_path / "file" / "store").add(DECODER)


def test_a_disk_that_is_too_small_is_refused_with_figures(store, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="has 1,000 bytes free; tiny-decoder needs"):
        store.add(DECODER)
    assert store.names() == []


_POWER_CUT = """
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
for name in ("fsync", "open", "rename", "replace", "mkdir", "unlink", "rmdir"):
    setattr(os, name, dies_at(getattr(os, name)))
from outpost_runtime.store import Store
Store(Path(sys.argv[2])).add(Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.incident("power cut", where="between any two writes of `outpost add`")
def test_power_cut_between_any_two_writes_leaves_the_old_or_the_new_model(store, tmp_path):
    old = store.add(_second_version(tmp_path, "1")).digest
    new_folder = _second_version(tmp_path, "2")
    new = read_bundle(new_folder).digest
    pristine = shutil.copytree(store.folder, tmp_path / "pristine")
    seen, cut_at = set(), 0
    while True:
        cut_at += 1
        shutil.rmtree(store.folder)
        shutil.copytree(pristine, store.folder)
        command = [sys.executable, "-c", _POWER_CUT, str(cut_at), store.folder, new_folder]
        status = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert status.returncode in (0, 86)
        active = store.slot("tiny-decoder").active
        assert active in (old, new)
        store.bundle(active)
        seen.add(active)
        if status.returncode == 0:
            break
        store.add(new_folder)
        assert store.slot("tiny-decoder").active == new
        assert not list((store.folder / "bundles").glob(".incoming-*"))
    assert cut_at > 8
    assert seen == {old, new}


@pytest.mark.incident("disk full", where="while a bundle is copied in")
def test_a_disk_that_fills_up_while_copying_leaves_the_store_as_it_was(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        store = Store(mount / "store")
        store._check_room = lambda _: None  # the disk fills up after the check
        store.add(CLASSIFIER)
        before = _state(store)
        with pytest.raises(StoreError, match="No space left on device"):
            store.add(DECODER)
        assert _state(store) == before
    finally:
        subprocess.run(["umount", str(mount)], check=True)
