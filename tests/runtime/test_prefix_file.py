import numpy as np
import pytest
import safetensors.numpy
from outpost_runtime.text import prefix_file

from tests.support.answers import continuation, events_of, new_engine, new_request, token_ids

PROMPT = [n % 50 + 4 for n in range(100)]
BUNDLE = "d" * 64


def _saved(folder, prompt=PROMPT, bundle=BUNDLE, **changes):
    engine = new_engine(bundle=bundle, blocks=64, **changes)
    events_of(engine, new_request(prompt, max_new_tokens=30))
    engine.with_prefixes(lambda *kept: prefix_file.save(folder, bundle, *kept))
    engine.close()
    return folder / f"{bundle}.safetensors"


def _cached_after_loading(folder, prompt=PROMPT, bundle=BUNDLE, blocks=64):
    engine = new_engine(bundle=bundle, blocks=blocks)
    engine.with_prefixes(lambda *kept: prefix_file.load(folder, bundle, *kept))
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
