"""Nothing of a sealed bundle is ever on a disk as it is: a whole disk is searched for it."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outpost_runtime.bundle import read_bundle

from tests.support import sealed_run
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER, EMBEDDER

_BUNDLES = (DECODER, EMBEDDER, CLASSIFIER, *ADAPTERS)
_ROOT = Path(__file__).parents[3]
_WINDOW = 64
_PAGE = 4096


@pytest.fixture
def disk(tmp_path):
    """The image of a disk, and what mounts it."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", image], check=True)

    @contextlib.contextmanager
    def mounted():
        options = ["-o", "loop", str(image), str(mount)]
        if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a disk")
        try:
            yield mount
            os.sync()
        finally:
            subprocess.run(["umount", str(mount)], check=True)

    return image, mounted


def _windows(folder):
    """Return pieces of every file that are in no other file, and in one block of a disk each."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        places = [at for at in range(0, len(data) - _WINDOW, 256) if at % _PAGE < _PAGE - _WINDOW]
        found = [data[at : at + _WINDOW] for at in places]
        telling = [window for window in found if len(set(window)) > _WINDOW // 4]
        for window in telling[:: max(len(telling) // 8, 1)]:
            yield path, window


def _found(image):
    data = image.read_bytes()
    return {path for folder in _BUNDLES for path, window in _windows(folder) if window in data}


def _run(mount):
    """Everything that a process could write to by itself is on the disk."""
    home = mount / "home"
    home.mkdir()
    places = dict.fromkeys(("HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME"), str(home))
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", sealed_run.__name__, str(mount / "store")],
        env=os.environ | places | {"PYTHONPATH": paths},
        cwd=home,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.incident(
    "a stolen disk", where="the disk image of a run, searched for known plaintext"
)
def test_a_disk_has_nothing_of_the_bundles_that_were_opened_from_it(disk):
    image, mounted = disk
    with mounted() as mount:
        for folder in _BUNDLES:
            sealed_run.ship(read_bundle(folder), mount / "store" / folder.name, block_bytes=1 << 14)
        assert _run(mount) == "3 models, 2 adapters\n"
    assert _found(image) == set()


@pytest.mark.slow
@pytest.mark.incident(
    "a stolen disk", where="the disk image of a run, searched for known plaintext"
)
def test_the_search_finds_what_is_on_the_disk_as_it_is(disk):
    image, mounted = disk
    with mounted() as mount:
        for folder in _BUNDLES:
            shutil.copytree(folder, mount / folder.name)
    names = {path.name for path in _found(image)}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "manifest.json"} <= names
    assert {"adapter.safetensors", "golden.safetensors", "chat_template.jinja"} <= names


@pytest.mark.slow
@pytest.mark.incident(
    "a stolen disk", where="the disk image of a run, searched for known plaintext"
)
def test_the_search_finds_what_was_on_the_disk_and_is_deleted(disk):
    image, mounted = disk
    with mounted() as mount:
        shutil.copytree(CLASSIFIER, mount / "scratch")
        os.sync()
        shutil.rmtree(mount / "scratch")
    assert CLASSIFIER / "model.onnx.data" in _found(image)
