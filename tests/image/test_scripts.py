"""The image's scripts that decide something, with stand-ins for the programs that they call."""

import contextlib
import fcntl
import http.server
import os
import shutil
import subprocess
import threading
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
        self.pause = folder / "pause"
        (self.store / "slots").mkdir(parents=True)
        (self.store / ".sync").touch()
        self.programs.mkdir()
        self.calls.touch()
        self.program("setpriv", _NOTES + 'case "$*" in *stage*) echo $VERSION;; esac')
        for name in ("systemd-sysupdate", "systemctl", "sync", "touch"):
            self.program(name, _NOTES)
        self.program("sleep", "#!/bin/sh\nexit 0\n")

    def program(self, name, text):
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def candidate(self, text='{"bundle":"b"}'):
        (self.store / "slots" / "system.json").write_text(f'{{"candidate":{text}}}\n')

    def take(self, version="2", address=None):
        environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "STORE": str(self.store),
            "CALLS": str(self.calls),
            "VERSION": version,
        }
        if address is not None:
            environment["HTTP_ADDRESS"] = address
        command = [SCRIPTS / "take-system", self.store, self.pause]
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


def test_an_installation_that_fails_is_tried_again_after_longer_and_longer(box):
    box.candidate()
    box.program("systemd-sysupdate", _NOTES + "exit 1\n")
    lengths = []
    for _ in range(13):
        assert box.take()[0] == 1
        until, length = map(int, box.pause.read_text().split())
        assert box.take()[0] == 0  # not yet
        box.pause.write_text(f"{until - length} {length}\n")  # the time has passed
        lengths.append(length)
    assert lengths[:3] == [60, 120, 240]
    assert lengths[-2:] == [86400, 86400]
    calls = [line.split(" ")[0] for line in box.calls.read_text().splitlines()]
    assert calls == ["setpriv", "systemd-sysupdate"] * 13


def test_a_newer_candidate_does_not_wait_for_the_pause_of_one_that_failed(box):
    box.candidate()
    box.program("systemd-sysupdate", _NOTES + "exit 1\n")
    box.take()
    os.utime(box.pause, (1, 1))
    assert box.take()[0] == 1


@pytest.mark.parametrize(("status", "noted"), [("200 OK", True), ("503 Unavailable", False)])
def test_a_system_has_to_make_ready_what_was_ready_before_it(box, status, noted):
    box.candidate()
    with _server(status) as (address, asked):
        box.take(address=address)
    calls = [line.split(" ")[0] for line in box.calls.read_text().splitlines()]
    assert asked == ["/v2/health/ready"]
    assert ("touch" in calls) == noted
    if noted:
        assert calls.index("touch") < len(calls) - 2  # before it is noted as tried


@pytest.mark.parametrize(
    ("files", "page"),
    [
        (["device.json"], "/v2/health/live"),
        (["device.json", "slots/press.json"], "/v2/health/live"),
        (["device.json", "system/was-ready"], "/v2/health/ready"),
    ],
)
def test_a_box_is_good_when_its_server_answers_where_it_listens(box, files, page):
    for name in files:
        (box.store / name).parent.mkdir(exist_ok=True)
        (box.store / name).touch()
    with _server("200 OK") as (address, asked):
        everywhere = "0.0.0.0:" + address.rpartition(":")[2]
        for listens in (address, everywhere):
            environment = {"PATH": "/usr/bin:/bin", "HTTP_ADDRESS": listens}
            command = [SCRIPTS / "await-answer", box.store]
            subprocess.run(command, env=environment, timeout=20, check=True)
    assert asked == [page, page]


@contextlib.contextmanager
def _server(status):
    asked = []
    code, _, reason = status.partition(" ")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(int(code), reason)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


class _Halves:
    """The folders of the state and of the models partition."""

    def __init__(self, folder):
        self.state, self.models = folder / "state", folder / "models"
        self.state.mkdir()
        self.models.mkdir()

    def pair(self, **options):
        command = [SCRIPTS / "pair", self.state, self.models]
        return subprocess.run(command, capture_output=True, check=False, **options).returncode == 0


@pytest.fixture
def halves(tmp_path):
    return _Halves(tmp_path)


def test_state_and_models_of_one_box_are_known_to_each_other(halves):
    assert halves.pair()
    assert halves.pair()
    words = [p.read_text() for p in (halves.state / "outpost-pair", halves.models / ".pair")]
    assert words[0] == words[1]
    assert len(words[0]) > 40


@pytest.mark.parametrize("changed", ["state", "models"])
@pytest.mark.parametrize("how", ["emptied", "another box's", "half made"])
def test_a_partition_that_was_replaced_alone_is_noticed(halves, changed, how):
    assert halves.pair()
    folder, name = {
        "state": (halves.state, "outpost-pair"),
        "models": (halves.models, ".pair"),
    }[changed]
    (folder / name).unlink()
    if how == "another box's":
        (folder / name).write_text("a word of his own\n")
    if how == "half made":
        (folder / f"{name}.new").write_text("a word of his own\n")
    assert not halves.pair()
    assert not halves.pair()


@pytest.mark.parametrize("done", range(1, 9))
def test_a_first_start_that_is_cut_off_between_two_steps_goes_on(halves, done, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("head", "base64", "sync", "mv", "cp"):
        real = shutil.which(name)
        (programs / name).write_text(
            f'#!/bin/sh\necho >> {tmp_path}/steps\n[ "$(wc -l < {tmp_path}/steps)" -le {done} ] || '
            f'kill -9 $PPID\nexec {real} "$@"\n'
        )
        (programs / name).chmod(0o755)
    assert not halves.pair(env={"PATH": f"{programs}:/usr/bin:/bin"})
    assert halves.pair()
    assert halves.pair()


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
