"""The commands of a publisher: what docs/key-ceremony.md says is run, word for word."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from outpost_export.cli import _parser, main
from outpost_export.publishing import key_files
from outpost_export.publishing.cli import _window
from outpost_export.publishing.signers import PASSPHRASE_VARIABLE
from outpost_runtime.update.offer import Rollout
from outpost_runtime.update.trust_store import TrustStore

from tests.support.publisher import NOW
from tests.support.releases import weights, write_bundle
from tests.support.signed_repositories import source_of

ROOT = Path(__file__).parents[2]
CEREMONY = (ROOT / "docs" / "key-ceremony.md").read_text("utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(key_files, "_SCRYPT_P", 1)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "six random words are good")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(line):
    return main(shlex.split(line))


def _init(options="--root-keys 1 --root-threshold 1"):
    assert _run(f"keys init --repo repo {options}") == 0


@pytest.mark.slow
def test_the_ceremony_of_the_documents_works_word_for_word(tmp_path):
    command = tmp_path / "bin" / "outpost-export"
    command.parent.mkdir()
    call = "import sys; from outpost_export.cli import main; sys.exit(main())"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}" "$@"\n')
    command.chmod(0o755)
    blocks = re.findall(r"```sh\n(.*?)```", CEREMONY, re.DOTALL)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        PASSPHRASE_VARIABLE: "six random words are good",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    root = (tmp_path / "repo" / "metadata" / "1.root.json").read_bytes()
    box = TrustStore.provision(tmp_path / "trust", root)
    refused = box.refresh(source_of(tmp_path / "repo"), NOW).refused
    assert [one.what for one in refused] == ["vision"]  # its owner has signed nothing yet


def test_the_commands_that_need_a_release_are_understood():
    lines = "".join(re.findall(r"```console\n(.*?)```", CEREMONY, re.DOTALL)).splitlines()
    assert len(lines) > 3
    for line in lines:
        _parser().parse_args(shlex.split(line)[1:])


def test_keys_are_made_once_and_shown(here, capsys):
    _init("--root-keys 1 --root-threshold 1 --family press")
    assert _run("keys show --repo repo") == 0
    shown = capsys.readouterr().out
    assert all(role in shown for role in ("root", "targets", "family-press", "stick"))
    before = sorted(path.name for path in (here / "keys").iterdir())
    assert _run("keys init --repo repo") == 1
    assert "already" in capsys.readouterr().err
    assert sorted(path.name for path in (here / "keys").iterdir()) == before


@pytest.mark.usefixtures("here")
def test_a_refresh_says_until_when_and_what_to_renew(capsys):
    _init("--root-keys 1 --root-threshold 1 --family press")
    assert _run("refresh --repo repo --days 30 --stick-days 365") == 0
    assert capsys.readouterr().out.count("is good until") == 6
    assert _run("keys renew online --repo repo") == 0


@pytest.mark.usefixtures("here")
def test_a_clock_far_ahead_has_to_be_confirmed(monkeypatch, capsys):
    _init("--root-keys 1 --root-threshold 1")
    later = time.time() + 500 * 86_400
    clock = SimpleNamespace(time=lambda: later)
    monkeypatch.setattr("outpost_export.publishing.cli.time", clock)
    assert _run("refresh --repo repo") == 1
    assert "--clock-is-right" in capsys.readouterr().err
    assert _run("refresh --repo repo --clock-is-right") == 0


def test_a_mistake_makes_no_key_and_says_one_thing(here, capsys):
    _init()
    before = sorted(path.name for path in (here / "keys").iterdir())
    capsys.readouterr()
    for line, words in {
        "keys rotate nobody --repo repo": "There is no role",
        "keys rotate root --replace ffff --repo repo": "not one",
        "keys family Press --repo repo": "cannot be called",
        "keys create ../../evil": "There is no role",
        "keys create family-../evil": "cannot be called",
        "keys withdraw press --repo repo": "no family",
        "rollout press --repo repo": "Say what shall change",
        "rollout press --halt --repo repo": "offers no 'press'",
        "refresh --repo elsewhere": "is no repository",
        "keys show --repo elsewhere": "is no repository",
        "keys show --repo repo --keys elsewhere": "the root to judge the repository by",
    }.items():
        assert _run(line) == 1, line
        said = capsys.readouterr()
        assert words in said.err, line
        assert said.out == ""
    assert sorted(path.name for path in (here / "keys").iterdir()) == before


def test_a_publication_to_what_is_not_there_leaves_nothing_behind(here, capsys):
    _init("--root-keys 1 --root-threshold 1 --family press")
    write_bundle(here / "bundle", weights())
    before = sorted(here.rglob("*"))
    for line, words in {
        "publish bundle --family nope --repo repo": "no family 'nope'; it has press",
        "publish bundle --family press --repo nope": "nope is no repository",
        "publish bundle --family press --repo nope --dry-run": "nope is no repository",
        "collect --repo nope": "nope is no repository",
    }.items():
        assert _run(line) == 1, line
        assert words in capsys.readouterr().err, line
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        "rollout press --percent 101 --repo repo",
        "rollout press --percent 5 --halt --repo repo",
        "rollout press --not-before soon --repo repo",
        "collect --grace nan --repo repo",
        "collect --grace 1e400 --repo repo",
        "collect --grace -1 --repo repo",
        "refresh --days 0 --repo repo",
        "keys --repo repo",
    ],
)
def test_an_option_that_cannot_be_is_refused_by_the_command_line(line):
    with pytest.raises(SystemExit):
        _run(line)


def test_a_window_is_shown_in_universal_time():
    rollout = Rollout(not_before=1_796_083_200, not_after=1_796_169_600)
    assert _window(rollout) == ", not before 2026-12-01T00:00Z, not after 2026-12-02T00:00Z"
    assert _window(Rollout()) == ""


def test_root_keys_go_to_their_own_folders_with_their_own_passphrases(here, monkeypatch):
    passphrases = {"a": "words of the first", "b": "words of the second", "keys": "words of all"}
    monkeypatch.setattr(
        "outpost_export.publishing.cli.ask_new_passphrase", lambda folder: passphrases[folder]
    )
    monkeypatch.setattr(
        "outpost_export.publishing.cli.ask_passphrase",
        lambda path: passphrases[Path(path).parent.name],
    )
    _init("--root-keys 2 --root-threshold 2 --root-dir a --root-dir b")
    assert [len(list((here / name).glob("root-*.pem"))) for name in passphrases] == [1, 1, 0]
    assert _run("keys renew root --repo repo --keys a") == 1
    assert _run("keys renew root --repo repo --keys a --keys b") == 0
