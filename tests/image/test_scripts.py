"""The image's scripts that decide something, with stand-ins for the programs that they call."""

import fcntl
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "device-images/mkosi.extra/usr/lib/outpost"
_NOTES = """#!/bin/sh
flock --nonblock "$STORE/.sync" true && lock=free || lock=held
echo "${0##*/} $* lock=$lock" >> "$CALLS"
"""


class _Box:
    """A store, and programs that note how they were called."""

    def __init__(self, folder):
        self.store, self.programs, self.calls = folder / "store", folder / "bin", folder / "calls"
        (self.store / "slots").mkdir(parents=True)
        (self.store / ".sync").touch()
        self.programs.mkdir()
        self.calls.touch()
        self.program("setpriv", _NOTES + 'case "$*" in *stage*) echo $VERSION;; esac')
        for name in ("systemd-sysupdate", "systemctl", "sync"):
            self.program(name, _NOTES)
        self.program("sleep", "#!/bin/sh\nexit 0\n")

    def program(self, name, text):
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def candidate(self, text='{"bundle":"b"}'):
        (self.store / "slots" / "system.json").write_text(f'{{"candidate":{text}}}\n')

    def take(self, version="2"):
        environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "STORE": str(self.store),
            "CALLS": str(self.calls),
            "VERSION": version,
        }
        command = [SCRIPTS / "take-system", self.store]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, [line.split(" ")[0] for line in self.calls.read_text().splitlines()]


@pytest.fixture
def box(tmp_path):
    return _Box(tmp_path)


def test_a_system_is_noted_as_tried_after_it_lies_in_its_slot_and_before_the_restart(box):
    box.candidate()
    assert box.take() == (0, ["setpriv", "systemd-sysupdate", "sync", "setpriv", "systemctl"])
    lines = box.calls.read_text().splitlines()
    assert "system stage" in lines[0]
    assert lines[1].startswith("systemd-sysupdate update 2")
    assert "system tried" in lines[3]
    assert lines[4].startswith("systemctl --no-block reboot")


def test_no_model_can_be_fetched_while_a_system_is_installed(box):
    box.candidate()
    box.take()
    assert all(line.endswith("lock=held") for line in box.calls.read_text().splitlines())


def test_no_system_is_installed_while_models_are_fetched(box):
    box.candidate()
    with (box.store / ".sync").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert box.take() == (0, [])


def test_nothing_is_installed_where_nothing_waits(box):
    assert box.take() == (0, [])
    box.candidate("null")
    assert box.take() == (0, [])


def test_a_closed_window_or_a_model_at_its_gate_leaves_the_slots_alone(box):
    box.candidate()
    assert box.take(version="") == (0, ["setpriv"])


def test_an_installation_that_fails_restarts_nothing(box):
    box.candidate()
    box.program("systemd-sysupdate", _NOTES + "exit 1\n")
    assert box.take() == (1, ["setpriv", "systemd-sysupdate"])


@pytest.mark.parametrize("installed", [True, False])
def test_no_model_is_fetched_until_a_new_system_has_answered(box, installed):
    folder = box.store / "system"
    folder.mkdir()
    if installed:
        (folder / "outpost_2.efi").touch()
    with subprocess.Popen([SCRIPTS / "await-answer", box.store]) as waiting:
        try:
            until = time.monotonic() + (5 if installed else 1)
            while not (held := _is_held(box.store / ".sync")) and time.monotonic() < until:
                time.sleep(0.1)
            assert held == installed
        finally:
            waiting.kill()


def _is_held(path):
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
