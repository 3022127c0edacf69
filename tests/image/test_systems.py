"""Systems of a box in an emulator: a good one is kept, a bad one comes back, power may go.

From here on the publisher offers systems to every box, so these tests come last.
"""

import random
import re
import time
from pathlib import Path

import pytest

from tests.image.conftest import ask, assert_healthy, is_served
from tests.support.metal.slots import install
from tests.support.metal.tools import kernel

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

_BROKEN = Path(__file__).parent / "broken"
_CUTS = 10
_CUT_SECONDS = 180.0
"""A moment up to here after 'installing' is inside of the installation or of the first start."""

_THROUGH = "system 2 is committed|2 did not hold"
"""Power that goes in three first starts leaves the new system no more tries."""


@pytest.fixture(scope="module")
def waiting(factory_new, publisher, tmp_path_factory):
    """A box whose next system is about to be installed."""
    publisher.publish_system(kernel(2))
    publisher.grant(factory_new.folder / "box.identity.json")
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


@pytest.mark.timeout(4 * 3600)  # two hours and a quarter, beside other work
def test_power_that_goes_ten_times_during_a_system_s_update_harms_nothing(waiting, tmp_path, show):
    """What the one cut left is what the next start finds; a box that is through is replaced."""
    moments = random.Random(6)  # noqa: S311 - no secret
    box, cuts = waiting.copy(tmp_path / "box"), 0
    while True:
        with box:
            assert_healthy(box)
            if cuts == _CUTS:
                box.wait(_THROUGH, 1800)
                break
            box.wait(f"installing system 2|{_THROUGH}", 900)
            through = re.search(_THROUGH, box.console())
            if not through:
                time.sleep(moments.uniform(0, _CUT_SECONDS))
                cuts += 1
                show(f"cut {cuts} at, s", (round(time.monotonic() - box.began), _last(box)))
        if through:
            show("through", through.group())
            box = waiting.copy(tmp_path / f"box-{cuts}")


def _last(box):
    """Return the newest line on the console, or that of a firmware that has just begun."""
    return box.console().strip().rpartition("\n")[2][-80:]


def _reports(box):
    return box.console().count("outpost-report end")
