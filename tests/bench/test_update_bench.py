"""The bench of updates, from a clean cache to its tables, on tiny stand-ins for the real bundles.

What costs an hour there takes seconds here: every command that would build something is checked
against the exporter's own parser, and answered with a copy of a fixture.
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from outpost_export.cli import _parser
from outpost_export.publishing import key_files
from outpost_runtime.bundle import describe_file, read_bundle, write_manifest

from bench import update_codings, update_sizes, update_times
from examples import bundles
from tests.support.candidates import adapter_of
from tests.support.fixtures import ADAPTERS, DECODER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("zstd") is None, reason="zstd is not installed: apt install zstd"
    ),
]


class _Exporter:
    """Answers build commands: weights move a little with every bundle, answers do not."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.commands = []

    def run(self, command, *arguments):
        words = [str(argument) for argument in arguments]
        self.commands.append((command, *words))
        if command == "python":
            assert words[0] == "-m"
            assert (bundles.ROOT / f"{words[1].replace('.', '/')}.py").is_file()
            (bundles.ROOT / words[-1]).mkdir(parents=True)
            return
        assert command == "outpost-export"
        parsed = _parser().parse_args(words)
        built = self._adapter(parsed) if words[0] == "build-adapter" else self._merged(parsed)
        out = bundles.ROOT / parsed.out
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(built, out)
        manifest = read_bundle(out).manifest
        write_manifest(
            out, dataclasses.replace(manifest, name=parsed.name, version=parsed.version or "1")
        )

    def _adapter(self, parsed):
        base = read_bundle(bundles.ROOT / parsed.base)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        adapter = ADAPTERS[0] if parsed.version is None else ADAPTERS[1]
        return adapter_of(adapter, base, folder, "0").folder

    def _merged(self, parsed):
        if parsed.on_grid_of:
            assert (bundles.ROOT / parsed.on_grid_of / "manifest.json").is_file()
        folder = Path(shutil.copytree(DECODER, Path(tempfile.mkdtemp(dir=self.scratch)) / "built"))
        data = folder / "model.onnx.data"
        values = np.fromfile(data, np.uint32)
        values[:: 1 + len(self.commands)] ^= 1  # the last bit of a float
        values.tofile(data)
        manifest = read_bundle(folder).manifest
        files = {**manifest.files, data.name: describe_file(data)}
        write_manifest(folder, dataclasses.replace(manifest, files=files))
        return folder


@pytest.fixture
def exporter(monkeypatch, tmp_path_factory):
    """An empty cache, and who fills it."""
    kept = bundles.ROOT / ".cache"
    kept.mkdir(exist_ok=True)
    cache = Path(tempfile.mkdtemp(prefix="test-", dir=kept))
    exporter = _Exporter(tmp_path_factory.mktemp("built"))
    monkeypatch.setattr(bundles, "CACHE", cache)
    monkeypatch.setattr(bundles, "run", exporter.run)
    yield exporter
    shutil.rmtree(cache)


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch):
    monkeypatch.setattr(key_files, "_SCRYPT_P", 1)
    monkeypatch.setattr(key_files, "_SCRYPT_N", 1 << 10)


@pytest.fixture(autouse=True)
def chunkers(monkeypatch):
    """Content-defined chunks without the environment that is made for them."""
    answers = {"versions": {"hf-xet": "0"}, "measure": {"chunks": 12, "xet": 34}}
    monkeypatch.setattr(update_codings, "_ask", lambda task, *_: answers[task])


def test_sizes_are_measured_with_one_command_from_an_empty_cache(exporter, tmp_path):
    assert update_sizes.main(["--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "update-sizes.json").read_text())
    titles = {
        "adapter → its second version",
        "base → fine-tune",
        "fine-tune → its second version",
        "base → full fine-tune",
    }
    assert {update["update"] for update in figures["updates"]} == titles
    assert len(figures["updates"]) == 13
    for update in figures["updates"]:
        sizes = update["bytes"]
        assert 0 < sizes["Outpost"] < sizes["whole"] + 4096  # of documents, for a tiny adapter
    built = [command for command in exporter.commands if command[0] == "outpost-export"]
    assert len(built) == len(set(built)) == 17
    text = (tmp_path / "update-sizes.md").read_text()
    assert "| base → full fine-tune |" in text


@pytest.mark.usefixtures("exporter")
def test_times_are_measured_of_the_bundles_that_are_there(tmp_path):
    for name in ("press-line", "press-line-2", "press-line-adapter", "press-line-2-adapter"):
        bundles.path_of(name, "cpu-int8")
    folder = bundles.CACHE / "bundles"
    options = ["--bundles", str(folder), "--rounds", "2", "--megabits", "40"]
    assert update_times.main([*options, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "update-times.json").read_text())
    assert [each["title"] for each in found] == [
        "nothing → base and adapter",
        "adapter → its second version",
        "nothing → fine-tune",
        "fine-tune → its second version",
    ]
    for each in found:
        assert all(seconds >= 0 for seconds in each["taken"]["phases"].values())
        assert each["taken"]["phases"]["gate"] > 0
        assert each["slow"]["phases"]["fetching"] >= 0.5 * each["slow"]["fetched"] * 8 / 40e6
    whole, delta = found[2]["taken"], found[3]["taken"]
    assert delta["fetched"] < whole["fetched"] / 2
    assert delta["phases"]["making"] > whole["phases"]["making"] == 0
    assert "nothing → fine-tune" in (tmp_path / "update-times.md").read_text()


def test_no_bundles_are_no_table(tmp_path):
    for command in (update_sizes, update_times):
        options = ["--bundles", str(tmp_path), "--out", str(tmp_path / "out")]
        assert command.main(options) == 1
    assert not (tmp_path / "out").exists()
