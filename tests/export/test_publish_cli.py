"""The commands publish and collect, as a user types them."""

import argparse
from pathlib import Path

import pytest
from outpost_export.publishing.publish_cli import add_commands
from outpost_runtime.errors import BundleError

from tests.support.releases import tuned, weights, write_bundle
from tests.support.shelves import ToyShelf


class ToyAccess:
    """Keeps the contract of ``Access`` without signatures."""

    def __init__(self):
        self.shelves = {}
        self.asked = []

    def add_arguments(self, parser):
        parser.add_argument("--repo", required=True, type=Path)

    def shelf(self, parsed):
        return self.shelves.setdefault(parsed.repo, ToyShelf(parsed.repo))

    def content_key(self, parsed, family):
        self.asked.append((parsed.repo, family))
        return bytes(32)


@pytest.fixture
def access():
    return ToyAccess()


@pytest.fixture
def run(access, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True), access)

    def command(*words):
        parsed = parser.parse_args([*map(str, words), "--repo", str(tmp_path / "repo")])
        return parsed.run(parsed)

    return command


@pytest.fixture
def bundles(tmp_path):
    first = {name: array for name, array in weights().items() if name in ("matrix", "half")}
    return [
        write_bundle(tmp_path / "one", first).folder,
        write_bundle(tmp_path / "two", tuned(first, "matrix"), version="2").folder,
    ]


def test_publish_shows_what_an_update_moves(run, bundles, capsys):
    assert run("publish", bundles[0], "--family", "toys") == 0
    first = capsys.readouterr().out
    assert "toy 1 (cpu-fp32) is published as release 1." in first
    assert "update from" not in first
    assert run("publish", bundles[1], "--family", "toys") == 0
    second = capsys.readouterr().out
    assert "is published as release 2." in second
    (line,) = (line for line in second.splitlines() if line.startswith("update from"))
    assert line.startswith("update from release 1 (1)")
    assert " instead of " in line
    assert run("publish", bundles[1], "--family", "toys") == 0
    assert "is offered already, as release 2; nothing was signed" in capsys.readouterr().out


def test_publish_offers_to_whom_it_was_told(run, bundles, access):
    words = ["--ring", "canary", "--ring", "lab", "--percent", "5"]
    words += ["--device-model", "press-7", "--minimum-runtime", "0.3.0"]
    run("publish", bundles[0], "--family", "toys", *words)
    ((_, shelf),) = access.shelves.items()
    (offer,) = shelf.offers()
    assert offer.rollout.rings == ("canary", "lab")
    assert (offer.rollout.percent, offer.devices) == (5, ("press-7",))
    assert offer.minimum_runtime == "0.3.0"
    assert access.asked == [(shelf.folder, "toys")]


def test_a_dry_run_says_so_and_writes_nothing(run, bundles, capsys, tmp_path):
    run("publish", bundles[0], "--family", "toys", "--dry-run")
    assert "would be published; nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "repo").exists()


def test_no_passphrase_is_asked_for_what_is_no_bundle(run, access, tmp_path):
    with pytest.raises(BundleError):
        run("publish", tmp_path, "--family", "toys")
    assert access.asked == []


@pytest.mark.parametrize("words", [["--percent", "101"], ["--delta-from", "-1"]])
def test_impossible_options_are_refused(run, bundles, words):
    with pytest.raises(SystemExit):
        run("publish", bundles[0], "--family", "toys", *words)


def test_collect_says_what_went_and_what_waits(run, bundles, access, capsys):
    run("publish", bundles[0], "--family", "toys")
    run("publish", bundles[1], "--family", "toys")
    ((_, shelf),) = access.shelves.items()
    shelf.withdraw(next(offer for offer in shelf.offers() if offer.release == 1))
    capsys.readouterr()
    assert run("collect") == 0
    waiting = capsys.readouterr().out
    assert waiting.startswith("0 files removed, 0 B.")
    assert "they go 30 days after" in waiting.replace("\n", " ")
    run("collect", "--grace", "0", "--dry-run")
    assert "would be removed" in capsys.readouterr().out
    run("collect", "--grace", "0")
    assert "files removed" in capsys.readouterr().out
    run("collect", "--grace", "0")
    assert capsys.readouterr().out.startswith("0 files removed, 0 B.")
