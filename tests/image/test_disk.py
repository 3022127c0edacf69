"""The partitions that a first start would make, said by the real systemd-repart."""

import json
import shutil

import pytest

from tests.support.metal.machine import copy_sparse
from tests.support.metal.tools import ROOT, run

pytestmark = [pytest.mark.image, pytest.mark.timeout(300)]

_DISK = ROOT / "device-images/mkosi.extra/usr/lib/outpost/disk"


@pytest.mark.parametrize(("key", "ending"), [("tpm", ""), ("weak-key", "-weak-key")])
@pytest.mark.parametrize(
    ("disk", "state", "models"), [(3400, 512, 934), (6144, 512, 3678), (65536, 2048, 61534)]
)
def test_state_gets_little_of_the_disk_and_models_the_rest(
    built, tmp_path, key, ending, disk, state, models
):
    copy_sparse(built, tmp_path / "disk.raw")
    shutil.copytree(_DISK / key, tmp_path / "definitions")
    words = ("--dry-run=yes", "--json=short", f"--size={disk}M", "--definitions=definitions")
    parts = json.loads(run(tmp_path, "systemd-repart", *words, "disk.raw"))
    sizes = {part["label"]: part["raw_size"] >> 20 for part in parts}
    assert sizes[f"outpost-state{ending}"] == state
    assert sizes[f"outpost-models{ending}"] == models
