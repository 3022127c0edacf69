"""A published system in the slots of a disk, by the real systemd-sysupdate, without a box.

The image's own definitions are used; only their paths lead to a disk in a file. Killing loses what
the program had not written yet, not what it had not flushed.
"""

import dataclasses
import random
import subprocess
import time

import pytest
from outpost_runtime.update.system import Running
from outpost_runtime.update.system_files import NextSystem

from tests.image.test_tree import EXTRA
from tests.support.fleet import Fleet
from tests.support.metal.tools import TOOLS, inside, run
from tests.support.systems import packed

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

ONE = Running(image="outpost", number=1)
_SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"
_ROOT, _VERITY = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5"
_SYSTEM_MIB = 24
_TABLE = f"""label: gpt
size={_SYSTEM_MIB}MiB, type={_ROOT}, name="outpost_1"
size=1MiB, type={_VERITY}, name="outpost_1"
size={_SYSTEM_MIB}MiB, type={_ROOT}, name="_empty"
size=1MiB, type={_VERITY}, name="_empty"
"""
_OLD = b"the system that runs"


class _Disk:
    """A disk that runs system 1, its boot partition's folder, and the definitions."""

    def __init__(self, folder, source):
        self.folder = folder
        self.kernels = folder / "EFI"
        self.kernels.mkdir(parents=True)
        (self.kernels / "outpost_1.efi").write_bytes(_OLD)
        with (folder / "disk.raw").open("wb") as file:
            file.truncate((2 * _SYSTEM_MIB + 6) << 20)
        (folder / "table").write_text(_TABLE)
        run(folder, "bash", "-c", "sfdisk -q disk.raw < table")
        with (folder / "disk.raw").open("r+b") as file:
            for start, _, _ in self.partitions()[:2]:
                file.seek(start)
                file.write(_OLD)
        (folder / "definitions").mkdir()
        (folder / "source").symlink_to(source)
        for path in (EXTRA / "usr/lib/sysupdate.d").glob("*.transfer"):
            self._define(path, source)

    def _define(self, path, source):
        text = path.read_text("utf-8")
        for old, new in (
            ("Path=/var/lib/outpost/store/system", f"Path={source}"),
            ("Path=auto", "Path=/mnt/disk.raw"),
            ("Path=/EFI/Linux\nPathRelativeTo=boot", "Path=/mnt/EFI"),
            ("%M", "outpost"),
            ("%A", "1"),
        ):
            text = text.replace(old, new)
        assert "Path=/mnt" in text
        (self.folder / "definitions" / path.name).write_text(text)

    def partitions(self):
        """Start and size in bytes, and label, of each partition."""
        lines = run(self.folder, "sfdisk", "--dump", "disk.raw").splitlines()
        found = []
        for line in lines:
            if "start=" in line:
                number = {
                    key: int(line.split(f"{key}=")[1].split(",")[0]) * 512
                    for key in ("start", "size")
                }
                found.append(
                    (number["start"], number["size"], line.split('name="')[1].split('"')[0])
                )
        return found

    def command(self):
        return inside(self.folder, _SYSUPDATE, "--definitions=/mnt/definitions", "update", "2")

    def contents(self, index, size):
        start, _, label = self.partitions()[index]
        with (self.folder / "disk.raw").open("rb") as file:
            file.seek(start)
            return label, file.read(size)

    def runs_as_before(self):
        assert (self.kernels / "outpost_1.efi").read_bytes() == _OLD
        for index in (0, 1):
            assert self.contents(index, len(_OLD)) == ("outpost_1", _OLD)

    def has(self, files):
        """Whether system 2 can be started; if so, all of it has to be there."""
        kernels = list(self.kernels.glob("outpost_2*.efi"))
        if not kernels:
            return False
        parts = {name.split(".")[1]: data for name, data in files.items()}
        assert [(k.name, k.read_bytes()) for k in kernels] == [("outpost_2+3-0.efi", parts["efi"])]
        for index, part in ((2, "system"), (3, "verity")):
            assert self.contents(index, len(parts[part])) == ("outpost_2", parts[part])
        return True


@pytest.fixture
def staged(tmp_path):
    """A box's next system as it was published, and the folder that its files were written to."""
    if not TOOLS.exists():
        pytest.fail(f"{TOOLS} is missing; 'make image' builds it")
    fleet = Fleet()
    box = dataclasses.replace(fleet.box(tmp_path / "store"), running=ONE)
    bundle = packed(tmp_path, 2, system_bytes=_SYSTEM_MIB << 20)
    fleet.publish(bundle)
    fleet.update(box)
    assert NextSystem(box.store, ONE).stage() == "2"
    return {name: bundle.read(name) for name in bundle.manifest.files}, box.store.folder / "system"


@pytest.fixture
def disk(staged, tmp_path):
    return _Disk(tmp_path / "disk", staged[1])


def test_a_published_system_is_put_into_the_slot_that_does_not_run(staged, disk):
    assert not disk.has(staged[0])
    subprocess.run(disk.command(), check=True, capture_output=True)
    disk.runs_as_before()
    assert disk.has(staged[0])
    again = subprocess.run(disk.command(), check=True, capture_output=True, text=True)
    assert "already installed" in again.stderr


def test_an_installation_that_is_killed_anywhere_is_not_startable_or_whole(
    staged, disk, tmp_path, show
):
    began = time.monotonic()
    subprocess.run(disk.command(), check=True, capture_output=True)
    whole = time.monotonic() - began
    found = []
    for number in range(10):
        again = _Disk(tmp_path / f"disk-{number}", staged[1])
        seconds = random.Random(number).uniform(0, whole)  # noqa: S311 - no secret
        with subprocess.Popen(again.command(), stderr=subprocess.DEVNULL) as installing:
            time.sleep(seconds)
            installing.kill()
        again.runs_as_before()
        found.append(again.has(staged[0]))
        subprocess.run(again.command(), check=True, capture_output=True)
        again.runs_as_before()
        assert again.has(staged[0])
    show("startable after the cut", found)
    assert False in found
