"""Models of a box in an emulator: swapped, cut off in the middle, larger than the disk.

From here on the publisher offers version 2 of the model to every box.
"""

import random
import time

import pytest

from tests.image.conftest import (
    MODEL,
    ask,
    assert_healthy,
    is_served,
    provisioning_stick,
    take_home,
    version,
)
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


@pytest.mark.timeout(4 * 3600)  # two hours and a quarter, beside other work
def test_power_that_goes_ten_times_during_a_model_s_update_harms_nothing(
    swapped, factory_new, tmp_path, show
):
    """What the one cut left is what the next start finds; a box that has the update is replaced.

    Killing qemu loses what the guest had not written yet, not what it had not flushed.
    """
    moments = random.Random(6)  # noqa: S311 - no secret
    box, cuts = factory_new.copy(tmp_path / "box"), 0
    while True:
        with box:
            assert_healthy(box)
            has_it = version(box) == ["2"]
            if cuts == _CUTS:
                break
            if not has_it:
                time.sleep(moments.uniform(0, swapped.seconds))
                cuts += 1
                show(f"cut {cuts} at, s", round(time.monotonic() - box.began))
        if has_it:
            box = factory_new.copy(tmp_path / f"box-{cuts}")
    assert _comes_to_version_2(box)


def _comes_to_version_2(box):
    with box:
        box.wait(lambda: is_served(box))
        box.wait(lambda: version(box) == ["2"], 900)
        ask(box)
        return box.report()["failed"] == [""]


@pytest.mark.usefixtures("built", "offered")
def test_what_does_not_fit_on_the_disk_is_not_begun(publisher, repository, tmp_path):
    box = new_machine(tmp_path / "small", disk_bytes=3400 << 20)
    stick = provisioning_stick(box.folder / "stick.img", publisher, repository)
    box.sticks = (stick.path,)
    with box:
        box.wait("the stick can be removed")
        take_home(stick, box.folder)
        publisher.grant(box.folder / "box.identity.json")
        box.wait(lambda: is_served(box))
        box.wait(lambda: version(box) == ["2"])
        sent = publisher.sent
        huge = larger_version(DECODER, tmp_path, "3", 1 << 30)
        publisher.publish(huge, MODEL)
        try:
            time.sleep(150)  # it has asked meanwhile
            assert (is_served(box), version(box)) == (True, ["2"])
            ask(box)
            assert 0 < publisher.sent - sent < 8 << 20  # what is offered, and nothing of it
        finally:
            publisher.publish(larger_version(DECODER, tmp_path, "4", 1 << 20), MODEL)
        box.wait(lambda: version(box) == ["4"])
        assert_healthy(box)
