"""The image as a box in an emulator, seen from outside: ports, serial cable, disk."""

import mmap
import os

import pytest

from tests.image.conftest import MODEL, ask, ask_over_http, is_served
from tests.support.fixtures import DECODER
from tests.support.metal.machine import accelerator, new_machine
from tests.support.metal.tools import run

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


def _offset_of(box, kind):
    """Return where a partition of the disk begins, in bytes, by its label."""
    for line in run(box.folder, "sfdisk", "--dump", "disk.raw").splitlines():
        if f'name="{kind}"' in line:
            return int(line.split("start=")[1].split(",")[0]) * 512
    raise AssertionError(f"no partition {kind}")


def _gigabytes(said):
    """Return the size of a report's line about a partition: ``tpm 3.1G 2.9G``."""
    return float(said.split()[1].removesuffix("G"))


def test_a_new_box_takes_a_stick_and_serves_what_its_publisher_offers(factory_new, show):
    report = factory_new.first_report
    show("accelerator", accelerator()[1])
    show("times", factory_new.times)
    show("report", report)
    assert report["failed"] == [""]
    assert report["blessed"] == ["good"]


def test_a_client_knows_the_box_by_the_certificate_that_its_stick_brought_home(factory_new):
    plain, over_tls = factory_new.answers
    assert over_tls == plain != ""
    assert factory_new.ready_over_tls.endswith(" 200 OK")


def test_the_root_is_verity_and_nothing_but_state_models_and_kernels_can_be_written(factory_new):
    report = factory_new.first_report
    assert report["root"][0].startswith("/dev/mapper/root erofs ro")
    assert "CRYPT-VERITY root" in report["verity"][0]
    assert set(report["writable"][0].split()) <= {"/var", "/var/lib/outpost/store", "/boot"}


def test_the_disk_is_locked_by_the_tpm_behind_secure_boot(factory_new):
    report = factory_new.first_report
    assert report["disk state"][0].startswith("tpm ")
    assert report["disk models"][0].startswith("tpm ")
    assert report["secure-boot"][0].startswith("enabled")


def test_a_powered_off_disk_shows_no_known_plaintext(factory_new):
    texts = [(DECODER / "tokenizer.json").read_bytes()[200:264], b"terminal-934c7a", b"10.0.2.2"]
    with (factory_new.folder / "disk.raw").open("rb") as file:
        disk = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert disk.find(b"systemd-boot") > 0  # what is not encrypted can be found this way
        assert [text for text in texts if disk.find(text) >= 0] == []


def test_from_power_to_the_first_token(box, show):
    with box:
        ready = box.wait(lambda: is_served(box))
        text, first = ask(box)
        show("power to ready over HTTP, s", round(ready, 1))
        show("question to first token, s", round(first, 2))
        for key in ("uptime", "time", "blame", "unit outpost"):
            show(key, box.report()[key])
        body = {"text_input": "Hi", "parameters": {"max_tokens": 8, "temperature": 0}}
        answer = ask_over_http(box, f"/v2/models/{MODEL}/generate", body)
        assert answer["text_output"] == text != ""


def test_a_changed_system_does_not_start(box):
    place = _offset_of(box, "outpost_1")
    with (box.folder / "disk.raw").open("r+b") as disk:
        for block in range(0, 200 << 20, 1 << 20):
            disk.seek(place + (1 << 20) + block)
            disk.write(b"\x5a" * 4096)
    with box:
        box.wait(lambda: box.console().count("BdsDxe: starting") >= 2, 600)
        assert not is_served(box)
        assert "outpost-report" not in box.console()


def test_a_changed_kernel_is_refused_by_secure_boot(box):
    name = run(box.folder, "mdir", "-b", "-i", f"disk.raw@@{1 << 20}", "::EFI/Linux").split()[0]
    kernel = box.folder / "kernel.efi"
    run(box.folder, "mcopy", "-o", "-i", f"disk.raw@@{1 << 20}", name, kernel.name)
    data = bytearray(kernel.read_bytes())
    data[len(data) // 2] ^= 1
    kernel.write_bytes(data)
    run(box.folder, "mcopy", "-o", "-i", f"disk.raw@@{1 << 20}", kernel.name, name)
    with box:
        box.wait(r"(?i)access denied|security violation|bad signature", 180)
        assert "outpost-report" not in box.console()


def test_a_clock_of_1970_changes_nothing(box):
    box.clock = "1970-01-01T00:00:00"
    with box:
        box.wait(lambda: is_served(box))
        report = box.report()
    assert int(report["clock"][0]) > 1_700_000_000
    assert report["failed"] == [""]


def test_models_grow_with_the_disk_and_nothing_is_lost(box, factory_new, show):
    os.truncate(box.folder / "disk.raw", 8 << 30)
    with box:
        box.wait(lambda: is_served(box))
        ask(box)
        report = box.report()
    before, now = (_gigabytes(of["disk models"][0]) for of in (factory_new.first_report, report))
    show("models before and now, GB", (before, now))
    assert 1.8 < now - before < 2.2
    assert report["failed"] == [""]


@pytest.mark.usefixtures("built")
def test_a_box_that_nobody_provisioned_shows_its_page_and_nothing_else(tmp_path):
    box = new_machine(tmp_path / "new")
    with box:
        report = box.report()
        assert report["unit outpost"][0].startswith("inactive")
        assert "8001" not in report["doors"][0]
        assert not is_served(box)


@pytest.mark.usefixtures("built")
def test_a_box_without_a_tpm_says_at_every_start_that_its_key_is_weak(tmp_path, show):
    box = new_machine(tmp_path / "weak")
    box.has_tpm = False
    for start in ("first", "second"):
        with box:
            report = box.report()
            show(f"{start} start until its report, s", report["uptime"])
            assert "WARNING: state is locked with a weak key" in box.console()
            assert "WARNING: models is locked with a weak key" in box.console()
            assert report["disk state"][0].startswith("WEAK ")
            assert report["disk models"][0].startswith("WEAK ")
            assert report["failed"] == [""]
            if start == "first":
                box.power_button()


def test_a_box_whose_tpm_is_gone_does_not_start(box):
    box.has_tpm = False
    with box:
        box.wait(lambda: box.console().count("BdsDxe: starting") >= 2, 600)
        assert not is_served(box)
        assert "outpost-report" not in box.console()
    labels = run(box.folder, "sfdisk", "--dump", "disk.raw")
    assert "outpost-models" in labels
    assert "weak-key" not in labels
