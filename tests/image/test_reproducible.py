"""Two builds of one tree, with the same keys, are the same image."""

import hashlib
import os
import shutil
import subprocess

import pytest

from tests.support.metal.tools import CACHE, OUT, ROOT

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

_DOWNLOADED = ("debs", "wheels")
_NAMES = ("outpost_1.*", "initrd.*")


def _digests(folder):
    found = {}
    for pattern in _NAMES:
        for path in folder.glob(pattern):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@pytest.mark.usefixtures("built")
def test_an_image_that_is_built_again_elsewhere_is_the_same(tmp_path, show):
    """Nothing is kept but what was downloaded, and the keys; the folder is another, too."""
    cache = tmp_path / "elsewhere"
    cache.mkdir()
    for name in _DOWNLOADED:
        shutil.copytree(CACHE / name, cache / name, copy_function=os.link)
    shutil.copytree(CACHE / "keys", cache / "keys")
    command = [ROOT / "device-images" / "build", "--version", "1"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=os.environ | {"CACHE": cache})
    again = _digests(cache / "out" / "x86-generic")
    show("digests", again)
    assert len(again) > 6
    assert again == _digests(OUT / "x86-generic")
