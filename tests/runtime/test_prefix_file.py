from argparse import Namespace

import numpy as np
import pytest
import safetensors.numpy
from outpost_runtime.cli.serving import _kept_prompts
from outpost_runtime.text import prefix_file
from outpost_runtime.update.device_keys import provision_keys

from tests.support.answers import continuation, events_of, new_engine, new_request, token_ids

PROMPT = [n % 50 + 4 for n in range(100)]
BUNDLE = "d" * 64


def _saved(folder, prompt=PROMPT, bundle=BUNDLE, key=None, **changes):
    engine = new_engine(bundle=bundle, blocks=64, **changes)
    events_of(engine, new_request(prompt, max_new_tokens=30))
    engine.with_prefixes(lambda *kept: prefix_file.save(folder, bundle, *kept, key))
    engine.close()
    return folder / f"{bundle}.{'sealed' if key else 'safetensors'}"


def _cached_after_loading(folder, prompt=PROMPT, bundle=BUNDLE, blocks=64, key=None):
    engine = new_engine(bundle=bundle, blocks=blocks)
    engine.with_prefixes(lambda *kept: prefix_file.load(folder, bundle, *kept, key))
    events = events_of(engine, new_request(prompt, max_new_tokens=10))
    engine.close()
    assert token_ids(events) == continuation(prompt, 10)
    return events[-1].cached_tokens


def test_a_conversation_survives_a_restart(tmp_path):
    _saved(tmp_path)
    conversation = [*PROMPT, *continuation(PROMPT, 30), 7, 8, 9]
    assert _cached_after_loading(tmp_path, conversation) == 128


def test_only_the_owner_may_read_it(tmp_path):
    path = _saved(tmp_path / "prompts")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_smaller_cache_takes_what_fits(tmp_path):
    _saved(tmp_path)
    assert 0 < _cached_after_loading(tmp_path, blocks=3) <= 48


def test_another_bundles_file_is_ignored_whatever_its_name(tmp_path, caplog):
    path = _saved(tmp_path)
    path.rename(tmp_path / f"{'e' * 64}.safetensors")
    assert _cached_after_loading(tmp_path, bundle="e" * 64) == 0
    assert "another bundle" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\xff" * 1000),
        lambda path: safetensors.numpy.save_file(
            safetensors.numpy.load_file(path) | {"parents": PARENTS}, path, METADATA
        ),
        lambda path: safetensors.numpy.save_file({}, path, METADATA),
    ],
)
def test_a_damaged_file_costs_nothing_but_time(tmp_path, caplog, damage):
    path = _saved(tmp_path)
    damage(path)
    assert _cached_after_loading(tmp_path) == 0
    assert "ignored" in caplog.text


def test_a_conversation_that_was_saved_encrypted_survives_a_restart(tmp_path):
    _saved(tmp_path, key=KEY)
    conversation = [*PROMPT, *continuation(PROMPT, 30), 7, 8, 9]
    assert _cached_after_loading(tmp_path, conversation, key=KEY) == 128


def test_nothing_of_a_prompt_can_be_read_in_an_encrypted_file(tmp_path):
    clear = _saved(tmp_path / "clear").read_bytes()
    path = _saved(tmp_path / "sealed", key=KEY)
    sealed = path.read_bytes()
    for known in (np.array(PROMPT[:16], np.int64).tobytes(), b"tokens", BUNDLE.encode()):
        assert known in clear
        assert known not in sealed
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", [b"\1" * 32, None])
def test_an_encrypted_file_is_nothing_without_its_key(tmp_path, key):
    _saved(tmp_path, key=KEY)
    assert _cached_after_loading(tmp_path, key=key) == 0


def test_an_encrypted_file_of_another_bundle_is_ignored_whatever_its_name(tmp_path, caplog):
    path = _saved(tmp_path, key=KEY)
    path.rename(tmp_path / f"{'e' * 64}.sealed")
    assert _cached_after_loading(tmp_path, bundle="e" * 64, key=KEY) == 0
    assert "ignored" in caplog.text


@pytest.mark.parametrize("damage", [lambda _: b"", lambda d: d[:-1], lambda d: d[:-1] + b"\0"])
def test_a_damaged_encrypted_file_costs_nothing_but_time(tmp_path, caplog, damage):
    path = _saved(tmp_path, key=KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert _cached_after_loading(tmp_path, key=KEY) == 0
    assert "ignored" in caplog.text


def test_what_was_saved_in_the_clear_is_gone_once_the_box_has_keys(tmp_path):
    clear = _saved(tmp_path)
    sealed = _saved(tmp_path, key=KEY)
    assert (clear.exists(), sealed.exists()) == (False, True)


def test_prompts_that_cannot_be_encrypted_as_they_should_be_are_not_kept(tmp_path, caplog):
    provision_keys(tmp_path)
    (tmp_path / "keys" / "device.secret").write_bytes(b"damaged")
    parsed = Namespace(store=tmp_path, keep_prompts=tmp_path / "prompts")
    assert _kept_prompts(parsed) == (None, None)
    assert "will not be saved" in caplog.text


KEY = bytes(range(32))
PARENTS = np.arange(8)
METADATA = {"format": "outpost-prefixes/1", "bundle": BUNDLE, "adapters": "[]"}


def test_a_full_disk_costs_the_file_and_nothing_else(tmp_path, caplog):
    folder = tmp_path / "file"
    folder.write_text("where a folder should be")
    _saved(folder)
    assert "not saved" in caplog.text


def test_without_a_file_there_is_nothing_to_remember(tmp_path, caplog):
    assert _cached_after_loading(tmp_path) == 0
    assert caplog.text == ""


@pytest.mark.parametrize("blocks", range(1, 14))
def test_whatever_fits_no_text_is_answered_from_anothers_memory(tmp_path, blocks):
    prompts = [[(n * step) % 50 + 4 for n in range(70)] for step in (3, 7, 11)]
    engine = new_engine(bundle=BUNDLE, blocks=64)
    for prompt in prompts:
        events_of(engine, new_request(prompt, max_new_tokens=1))
    engine.with_prefixes(lambda *kept: prefix_file.save(tmp_path, BUNDLE, *kept))
    engine.close()
    for asked in prompts:
        _cached_after_loading(tmp_path, asked, blocks=blocks)  # compares with the toy's language
