"""Models of a box in an emulator: swapped, cut off in the middle, larger than the disk.

From here on the publisher offers version 2 of the model to every box.
"""

import random
import time

import pytest

from tests.image.conftest import MODEL, ask, is_served, provisioning_stick, version
from tests.support.candidates import version_of
from tests.support.fixtures import DECODER
from tests.support.metal.machine import new_machine
from tests.support.metal.models import larger_version

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

_UPDATE_BYTES = 48 << 20
"""So many that cannot be compressed come with version 2, so that there are moments to cut."""

_CUTS = 10


@pytest.fixture(scope="module")
def offered(publisher, factory_new, tmp_path_factory):  # noqa: ARG001 - it has version 1 first
    folder = tmp_path_factory.mktemp("version-2")
    publisher.publish(larger_version(DECODER, folder, "2", _UPDATE_BYTES), MODEL)


@pytest.fixture(scope="module")
def swapped(offered, factory_new, tmp_path_factory):  # noqa: ARG001 - it is what comes
    """A box that has swapped its model while it was asked, switched off."""
    box = factory_new.copy(tmp_path_factory.mktemp("boxes") / "swapped")
    box.texts = []
    with box:
        served = box.wait(lambda: is_served(box))
        assert version(box) == ["1"]
        while version(box) == ["1"] and time.monotonic() - box.began < served + 900:
            box.texts.append(ask(box)[0])
        box.seconds = time.monotonic() - box.began - served
        assert version(box) == ["2"]
        box.texts.append(ask(box)[0])
        box.first_report = box.report()
    return box


def test_a_model_is_swapped_and_no_request_fails(swapped, show):
    show("answers until version 2 and one more", len(swapped.texts))
    show("version 1 served to version 2, s", round(swapped.seconds, 1))
    assert len(set(swapped.texts)) == 1  # its weights are the same
    assert swapped.first_report["failed"] == [""]


@pytest.mark.parametrize("number", range(_CUTS))
def test_power_that_goes_during_a_model_s_update_harms_nothing(box, swapped, number, show):
    """Killing qemu loses what the guest had not written yet, not what it had not flushed."""
    seconds = random.Random(number).uniform(0, swapped.seconds)  # noqa: S311 - no secret
    with box:
        box.wait(lambda: is_served(box))
        time.sleep(seconds)
        show("cut after it served for, s", (round(seconds, 1), version(box)))
    with box:
        box.wait(lambda: is_served(box))
        show("version then", version(box))
        ask(box)
        box.wait(lambda: version(box) == ["2"], 900)
        assert box.report()["failed"] == [""]


@pytest.mark.usefixtures("built")
def test_what_does_not_fit_on_the_disk_is_not_begun(publisher, repository, tmp_path):
    box = new_machine(tmp_path / "small", disk_bytes=3400 << 20)
    stick = provisioning_stick(box.folder / "stick.img", publisher, repository)
    box.sticks = (stick.path,)
    with box:
        box.wait("the stick can be removed")
        identity = next(name for name in stick.names("boxes") if name.endswith("identity.json"))
        (box.folder / "identity.json").write_text(stick.read(f"boxes/{identity}"))
        publisher.grant(box.folder / "identity.json")
        box.wait(lambda: is_served(box))
        free = box.report()["disk models"]
        huge = larger_version(DECODER, tmp_path, "3", 1 << 30)
        publisher.publish(huge, MODEL)
        try:
            time.sleep(150)  # it has asked meanwhile
            assert (is_served(box), version(box)) == (True, ["2"])
            ask(box)
        finally:
            publisher.publish(version_of(DECODER, tmp_path, "4"), MODEL)
        box.wait(lambda: version(box) == ["4"], 600)
        assert box.report()["disk models"] == free
