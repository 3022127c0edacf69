"""Systems of a box in an emulator: a good one is kept, a bad one comes back, power may go.

From here on the publisher offers systems to every box, so these tests come last.
"""

import random
import time
from pathlib import Path

import pytest

from tests.image.conftest import ask, is_served
from tests.support.metal.slots import install
from tests.support.metal.tools import kernel

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

_BROKEN = Path(__file__).parent / "broken"
_CUTS = 10
_CUT_SECONDS = 180.0
"""A moment up to here after 'installing' is inside of the installation or of the first start."""


@pytest.fixture(scope="module")
def waiting(factory_new, publisher, tmp_path_factory):
    """A box whose next system is about to be installed."""
    publisher.publish_system(kernel(2))
    publisher.grant(factory_new.folder / "identity.json")
    box = factory_new.copy(tmp_path_factory.mktemp("boxes") / "waiting")
    with box:
        box.times = {"system 2 fetched": box.wait("installing system 2", 1800)}
    return box


@pytest.fixture(scope="module")
def updated(waiting, tmp_path_factory):
    """That box after the update, switched off."""
    box = waiting.copy(tmp_path_factory.mktemp("boxes") / "updated")
    with box:
        box.times = {"installed": box.wait("restarting for system 2", 1800)}
        box.times["blessed"] = box.wait("system 2 is committed", 1800)
        box.wait(lambda: _reports(box) == 2)
        box.wait(lambda: is_served(box))
        box.answer, _ = ask(box)
        box.first_report = box.report()
        box.power_button()
    return box


def test_a_system_that_never_answers_is_left_after_three_tries(box, show):
    """It lies in the other slot, as if an update had brought it; the box has never seen it run."""
    kernel(3, _BROKEN)
    install(box, 3)
    with box:
        show("back, s", round(box.wait(lambda: is_served(box), 3000)))
        ask(box)
        assert box.console().count("BdsDxe: starting") == 4
        report = box.report()
    assert report["version"] == ["outpost 1"]
    assert report["kernels"] == ["outpost_1.efi outpost_3+0-3.efi"]
    assert report["failed"] == [""]


def test_a_new_system_is_installed_started_and_kept(waiting, updated, show):
    show("times", {**waiting.times, **updated.times})
    report = updated.first_report
    assert report["version"] == ["outpost 2"]
    assert report["blessed"] == ["good"]
    assert report["failed"] == [""]
    assert report["disk models"][0].startswith("tpm ")  # the other system unlocks it, too
    assert '"what": "committed"' in report["last"][0]
    assert report["kernels"] == ["outpost_1.efi outpost_2.efi"]


def test_a_bad_system_goes_back_by_itself_and_is_not_tried_again(
    updated, publisher, tmp_path, show
):
    box = updated.copy(tmp_path / "box")
    publisher.publish_system(kernel(3, _BROKEN))
    with box:
        show("system 3 installed", box.wait("restarting for system 3", 2400))
        show("back", box.wait("3 did not hold: 2 has come back", 2400))
        box.wait(lambda: is_served(box))
        assert ask(box)[0] == updated.answer
        box.wait(lambda: box.console().rfind("outpost-report end") > box.console().rfind("did not"))
        report = box.report()
        assert report["version"] == ["outpost 2"]
        assert report["kernels"][0].split()[1].startswith("outpost_3+0-3")
        assert '"what": "refused"' in report["last"][0]
        time.sleep(180)
        assert box.console().count("installing system 3") == 1


@pytest.mark.parametrize("number", range(_CUTS))
def test_power_that_goes_during_a_system_s_update_harms_nothing(waiting, number, tmp_path, show):
    box = waiting.copy(tmp_path / "box")
    seconds = random.Random(number).uniform(0, _CUT_SECONDS)  # noqa: S311 - no secret
    show("cut after 'installing', s", round(seconds, 1))
    with box:
        box.wait("installing system 2", 1800)
        time.sleep(seconds)
    with box:
        box.wait(lambda: is_served(box), 900)
        ask(box)
        box.wait("system 2 is committed|outpost-report version outpost 2", 2400)
        box.wait(lambda: is_served(box), 900)
        ask(box)


def _reports(box):
    return box.console().count("outpost-report end")
