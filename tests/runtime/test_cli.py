"""The command as users type it."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from outpost_runtime import golden_file
from outpost_runtime.bundle import describe_file, read_bundle, write_manifest
from outpost_runtime.cli.ending import ended

from tests.support.fixtures import CLASSIFIER, DECODER, EMBEDDER
from tests.support.serving import serving


def _outpost(*arguments):
    command = [sys.executable, "-m", "outpost_runtime.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("cli"), [DECODER, EMBEDDER], "--threads", "1") as running:
        yield running


def test_add_then_status_shows_the_model(tmp_path):
    added = _outpost("add", DECODER, "--store", tmp_path / "store")
    assert "tiny-decoder 1 (cpu-fp32" in added.stdout
    status = _outpost("status", "--store", tmp_path / "store", "--address", "127.0.0.1:1", "--json")
    document = json.loads(status.stdout)
    assert document["serving"] is False
    assert [(m["name"], m["state"]) for m in document["models"]] == [("tiny-decoder", "active")]


def test_status_of_a_served_store(server):
    status = _outpost("status", "--store", server.store, "--address", server.address)
    assert f"server  {server.address}: serving" in status.stdout


def test_generate_streams_the_answer_and_tells_the_figures(server):
    done = _outpost(
        "generate", "tiny-decoder", "Hi", "--max-new-tokens", 12, "--address", server.address
    )
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "12 tokens at" in done.stderr


def test_embed_prints_one_vector_per_text_and_similarities_on_request(server):
    texts = ["one", "one", "something else"]
    vectors = _outpost("embed", "tiny-embedder", *texts, "--address", server.address).stdout
    assert [len(json.loads(line)) for line in vectors.splitlines()] == [32, 32, 32]
    table = _outpost("embed", "tiny-embedder", *texts, "--similarity", "--address", server.address)
    assert table.stdout.splitlines()[0].startswith(" 1.000   1.000")


def test_a_mistake_in_the_settings_is_told_before_a_box_is_provisioned(tmp_path):
    (tmp_path / "outpost.toml").write_text("[update]\nevery_minute = 1\n")
    (tmp_path / "root.json").write_text("{}")
    options = ["--repo", tmp_path, "--root", tmp_path / "root.json", "--store", tmp_path / "store"]
    done = _outpost("provision", *options, "--config", tmp_path / "outpost.toml")
    assert done.returncode == 1
    assert "every_minute" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_store_without_models_is_not_as_built(tmp_path):
    done = _outpost("check", "--store", tmp_path / "mistyped")
    assert done.returncode == 1
    assert "has no models" in done.stderr
    assert "outpost add" in done.stderr


def test_a_file_in_place_of_a_store_is_one_message_and_one_hint(tmp_path):
    (tmp_path / "store").touch()
    for command in ("history", "check"):
        done = _outpost(command, "--store", tmp_path / "store")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 2


def test_what_the_disk_refuses_any_command_is_one_message_and_one_hint(capsys):
    def run():
        raise PermissionError(errno.EACCES, "Permission denied", "keys")

    assert ended("outpost-export", run) == 1
    message, hint = capsys.readouterr().err.splitlines()
    assert message == "outpost-export: keys: Permission denied."
    assert hint.startswith("  ")


@pytest.mark.parametrize("at", ['"x"', "1e30", "[1]", "-1e300"])
def test_a_time_that_is_none_hides_no_history(tmp_path, at):
    _outpost("add", DECODER, "--store", tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(f'{{"number":9,"at":{at},"name":"press","what":"back"}}\n')
    done = _outpost("history", "--store", tmp_path)
    assert done.returncode == 0
    assert [line.split()[1:3] for line in done.stdout.splitlines()][-1] == ["press", "back"]


def test_check_runs_the_golden_inputs(tmp_path):
    _outpost("add", DECODER, "--store", tmp_path / "store")
    _outpost("add", EMBEDDER, "--store", tmp_path / "store")
    done = _outpost("check", "--store", tmp_path / "store")
    assert done.returncode == 0
    assert "tiny-decoder: as built (agreement 1" in done.stdout
    assert "tiny-embedder: as built (max_difference" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["add", "/nowhere"], "/nowhere is not a bundle", "outpost-export build"),
        (["serve", "--store", "/nowhere"], "has no models", "outpost add"),
        (["serve", "--address", "0.0.0.0:8001"], "other machines", "--allow-remote-unauth"),
        (["serve", "--address", "8001"], "'8001' is not an address", "HOST:PORT"),
        (["serve", "--address", f"127.0.0.1:{'9' * 5000}"], "is not an address", "HOST:PORT"),
        (["generate", "m", "x", "--address", "foo"], "'foo' is not an address", "HOST:PORT"),
        (["generate", "m", "x", "--address", "http://127.0.0.1:1"], "not an address", "HOST:PORT"),
        (["generate", "m", "x", "--address", ""], "'' is not an address", "HOST:PORT"),
        (["sync", "--repo", "/", "--config", "/nope"], "/nope cannot be read", "TOML"),
        (["serve", "--http-address", "0.0.0.0:8000"], "other machines", "127.0.0.1"),
        (["generate", "m", "x", "--address", "127.0.0.1:1"], "no server on 127.0.0.1:1", "serve"),
        (["check", "nope", "--store", "/nowhere"], "no model 'nope'", ""),
        (["generate", "m", "x", "--max-new-tokens", "99999999999"], "cannot be sent", ""),
        (["generate", "m", "x", "--seed", "-1"], "cannot be sent", ""),
        (["embed", "m", "\udcff"], "cannot be sent", ""),
    ],
)
def test_a_mistake_ends_with_one_message_and_one_hint(arguments, message, hint):
    done = _outpost(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_second_server_on_the_same_port_is_refused(server):
    done = _outpost("serve", "--store", server.store, "--address", server.address)
    assert done.returncode == 1
    assert "is another one running there?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_model_is_not_served_and_the_others_are(tmp_path):
    shutil.copytree(DECODER, tmp_path / "copy")
    with serving(tmp_path, [tmp_path / "copy", EMBEDDER]) as running:
        store = running.store
    rotten = next(
        path for path in store.glob("bundles/*/model.onnx.data") if path.stat().st_size > 3e5
    )
    rotten.write_bytes(b"rot")
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(store, again / "store")
    with serving(again, []) as running:
        done = _outpost("embed", "tiny-embedder", "x", "--address", running.address)
        assert done.returncode == 0
        assert "tiny-decoder is not served" in running.log.read_text()
        refused = _outpost("generate", "tiny-decoder", "x", "--address", running.address)
        assert "no model 'tiny-decoder'" in refused.stderr


def test_a_golden_file_that_was_made_elsewhere_fails_the_check(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(DECODER, folder)
    manifest = read_bundle(folder).manifest
    path = folder / manifest.evidence.golden
    tensors = golden_file.load(path)
    golden_file.save(path, tensors | {"top_tokens": np.zeros_like(tensors["top_tokens"])})
    files = manifest.files | {path.name: describe_file(path)}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    _outpost("add", folder, "--store", tmp_path / "store")
    done = _outpost("check", "--store", tmp_path / "store")
    assert done.returncode == 1
    assert "agreement is" in done.stderr


def _changed(tmp_path, folder, **changes):
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    manifest = read_bundle(copy).manifest
    write_manifest(copy, dataclasses.replace(manifest, **changes))
    return copy


def _served_beside(tmp_path, bundle):
    """Serve a bundle that cannot be opened beside a healthy one; returns the server's log."""
    with serving(tmp_path, [bundle, EMBEDDER]) as running:
        done = _outpost("embed", "tiny-embedder", "x", "--address", running.address)
        assert done.returncode == 0
        return running.log.read_text()


def test_a_context_that_no_memory_holds_takes_no_other_model_down(tmp_path):
    interface = dataclasses.replace(read_bundle(DECODER).manifest.interface, context_length=10**13)
    log = _served_beside(tmp_path, _changed(tmp_path, DECODER, interface=interface))
    assert "tiny-decoder is not served: One sequence of 10000000000000 tokens" in log


def test_a_template_that_is_no_text_takes_no_other_model_down(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(DECODER, copy)
    template = copy / "chat_template.jinja"
    template.write_bytes(b"\xff\xfe")
    manifest = read_bundle(copy).manifest
    files = manifest.files | {template.name: describe_file(template)}
    write_manifest(copy, dataclasses.replace(manifest, files=files))
    assert "tiny-decoder is not served" in _served_beside(tmp_path, copy)


def test_defaults_that_nothing_allows_are_found_when_the_model_is_opened(tmp_path):
    interface = read_bundle(DECODER).manifest.interface
    wrong = dataclasses.replace(interface.defaults, top_p=0.0)
    changed = dataclasses.replace(interface, defaults=wrong)
    log = _served_beside(tmp_path, _changed(tmp_path, DECODER, interface=changed))
    assert "generation defaults of 'tiny-decoder' are wrong: top_p is 0" in log


def test_an_interface_that_is_not_the_models_is_found_when_it_is_opened(tmp_path):
    interface = read_bundle(CLASSIFIER).manifest.interface
    changed = dataclasses.replace(interface, inputs=interface.inputs[:1])
    log = _served_beside(tmp_path, _changed(tmp_path, CLASSIFIER, interface=changed))
    assert "other inputs or outputs than its manifest" in log


@pytest.mark.parametrize(
    "golden_tensors",
    [
        {},
        {"0/inputs/input_ids": np.ones((1, 3), np.int64)},
        {"surprise": np.ones(3)},
    ],
)
def test_a_golden_file_that_proves_nothing_fails_the_check(tmp_path, golden_tensors):
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDER, copy)
    manifest = read_bundle(copy).manifest
    path = copy / manifest.evidence.golden
    golden_file.save(path, golden_tensors)
    files = manifest.files | {path.name: describe_file(path)}
    write_manifest(copy, dataclasses.replace(manifest, files=files))
    _outpost("add", copy, "--store", tmp_path / "store")
    done = _outpost("check", "--store", tmp_path / "store")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
