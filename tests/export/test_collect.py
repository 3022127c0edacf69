"""Collecting: what goes, what waits, and what is never touched."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_export.errors import PublishError
from outpost_export.progress import SilentReporter
from outpost_export.publishing.collect import UNUSED_NAME, collect, due
from outpost_export.publishing.publication import Order, Warehouse
from outpost_export.publishing.publish import changing, publish
from outpost_runtime.errors import BusyError, TrustError
from outpost_runtime.update.blocks import BlockStore
from outpost_runtime.update.delta_index import delta_path

from tests.support.power_switch import power_cut
from tests.support.releases import missing, tuned, weights, write_bundle
from tests.support.shelves import ToyShelf

DAY = 86_400
NOW = 1_800_000_000.0
PATHS = st.sets(st.sampled_from([f"blocks/{n}" for n in range(8)]))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository with two versions, and their shelf."""
    folder = tmp_path_factory.mktemp("published")
    shelf = ToyShelf(folder / "repository")
    first = {name: array for name, array in weights().items() if name in ("matrix", "half")}
    for version, arrays in (("1", first), ("2", tuned(first, "matrix"))):
        bundle = write_bundle(folder / version, arrays, version=version)
        _publish(shelf, bundle)
    return shelf


def _publish(shelf, bundle):
    warehouse = Warehouse(
        folder=shelf.folder,
        blocks=BlockStore(shelf.folder / "blocks"),
        shelf=shelf,
        content_key=bytes(32),
    )
    return publish(Order(bundle=bundle.folder, family="toys"), warehouse, SilentReporter())


@pytest.fixture
def shelf(published, tmp_path):
    """A copy of it."""
    shutil.copytree(published.folder, tmp_path / "repository")
    copy = ToyShelf(tmp_path / "repository")
    copy._offered = dict(published._offered)
    return copy


def _collect(shelf, *, days, grace=30, dry_run=False):
    now = NOW + days * DAY
    return collect(shelf.folder, shelf, now=now, grace=grace * DAY, dry_run=dry_run)


def _tree(shelf):
    return {path for path in shelf.folder.rglob("*") if path.is_file() and path.name != ".lock"}


def _withdraw_first(shelf):
    (first,) = (offer for offer in shelf.offers() if offer.release == 1)
    release = shelf.release(first)
    shelf.withdraw(first)
    return release


@given(
    present=PATHS,
    named=PATHS,
    since=st.dictionaries(st.sampled_from(["blocks/1", "blocks/9"]), st.floats(0, 100)),
    now=st.floats(0, 100),
)
def test_what_is_due_is_present_and_named_by_nobody(present, named, since, now):
    found = due(present, named, since, now)
    assert set(found) == present - named
    assert all(seen == min(since.get(path, now), now) for path, seen in found.items())


def test_what_is_named_stays_for_ever(shelf):
    before = _tree(shelf)
    for days in (0, 31, 40_000):
        found = _collect(shelf, days=days)
        assert (found.removed, found.waiting) == (0, 0)
    assert _tree(shelf) - {shelf.folder / UNUSED_NAME} == before


def test_what_nobody_names_goes_after_the_grace_period(shelf):
    _withdraw_first(shelf)
    before = _tree(shelf)
    found = _collect(shelf, days=0)
    assert found.removed == 0
    assert found.waiting == 3  # a block of weights, one of the manifest, and the release
    assert _tree(shelf) == before | {shelf.folder / UNUSED_NAME}
    assert _collect(shelf, days=29).removed == 0
    gone = _collect(shelf, days=30)
    assert (gone.removed, gone.removed_bytes, gone.waiting) == (
        found.waiting,
        found.waiting_bytes,
        0,
    )
    (second,) = shelf.offers()
    assert missing(shelf.folder, shelf.release(second)) == []
    assert not any("toy-1-" in path.name for path in _tree(shelf))


def test_the_grace_period_begins_when_it_was_seen_and_not_when_it_was_written(shelf):
    _withdraw_first(shelf)
    assert _collect(shelf, days=1000).removed == 0


def test_what_is_named_again_in_time_stays(shelf):
    (first,) = (offer for offer in shelf.offers() if offer.release == 1)
    path = shelf._offered[first]
    release = _withdraw_first(shelf)
    _collect(shelf, days=0)
    shelf._offered[first] = path
    assert _collect(shelf, days=31).removed == 0
    assert missing(shelf.folder, release) == []
    shelf.withdraw(first)
    assert _collect(shelf, days=32).removed == 0


def test_a_clock_that_was_far_ahead_does_not_keep_files_for_ever(shelf):
    _withdraw_first(shelf)
    _collect(shelf, days=30_000)
    assert _collect(shelf, days=0).removed == 0
    assert _collect(shelf, days=30).removed > 0


def test_what_a_publication_left_that_was_cut_off_goes_too(shelf, tmp_path):
    changed = tuned({"matrix": weights()["matrix"]}, "matrix", seed=9)
    bundle = write_bundle(tmp_path / "third", changed, version="3")
    with power_cut(shelf.folder, after=20) as cut:
        _publish(shelf, bundle)
    assert cut
    left = _collect(shelf, days=0).waiting
    assert left > 0
    assert _collect(shelf, days=30).removed == left


def test_files_of_others_are_never_touched(shelf):
    _withdraw_first(shelf)
    others = [
        shelf.folder / name
        for name in ("index.html", "blocks/README", "targets/toys/notes.json", "keys/a/b.json")
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    outside = shelf.folder.parent / ("0" * 64)
    outside.write_text("outside")
    link = shelf.folder / "blocks" / "00" / ("0" * 64)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    _collect(shelf, days=0)
    _collect(shelf, days=100)
    assert all(path.exists() for path in [*others, outside, link])


def test_a_dry_run_removes_nothing_and_writes_nothing(shelf):
    _withdraw_first(shelf)
    _collect(shelf, days=0)
    before = {path: path.read_bytes() for path in _tree(shelf)}
    dry = _collect(shelf, days=31, dry_run=True)
    assert {path: path.read_bytes() for path in _tree(shelf)} == before
    assert dry.removed == _collect(shelf, days=31).removed > 0


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other", "since": {}}', '{"since": 1'])
def test_a_damaged_memory_of_what_is_unused_only_costs_time(shelf, text):
    _withdraw_first(shelf)
    _collect(shelf, days=0)
    (shelf.folder / UNUSED_NAME).write_text(text)
    assert _collect(shelf, days=31).removed == 0
    assert _collect(shelf, days=61).removed > 0


def test_with_a_damaged_index_or_release_nothing_is_removed(shelf):
    offers = {offer.release: offer for offer in shelf.offers()}
    (reference,) = shelf.release(offers[2]).deltas
    _collect(shelf, days=0)
    before = _tree(shelf)
    index = shelf.folder / delta_path(reference.index)
    data = index.read_bytes()
    index.write_bytes(data[:-9])
    with pytest.raises(PublishError, match="deltas/"):
        _collect(shelf, days=31)
    index.write_bytes(data)
    path = shelf.folder / shelf._offered[offers[1]]
    path.write_bytes(b"{}")
    with pytest.raises(TrustError):
        _collect(shelf, days=31)
    assert _tree(shelf) == before


def test_a_missing_index_is_no_reason_to_keep_its_deltas(shelf):
    (second,) = (offer for offer in shelf.offers() if offer.release == 2)
    (reference,) = shelf.release(second).deltas
    (shelf.folder / delta_path(reference.index)).unlink()
    assert _collect(shelf, days=0).waiting > 0


def test_it_waits_for_no_publication_that_is_on_its_way(shelf):
    with changing(shelf.folder), pytest.raises(BusyError):
        _collect(shelf, days=0)


def test_a_power_cut_while_collecting_costs_nothing_that_is_named(shelf):
    _withdraw_first(shelf)
    total = _collect(shelf, days=0).waiting
    removed = 0
    for after in range(100):
        with power_cut(shelf.folder, after=after % 6) as cut:
            removed = _collect(shelf, days=31).removed
        (second,) = shelf.offers()
        assert missing(shelf.folder, shelf.release(second)) == []
        if not cut:
            break
    assert 0 < removed < total
    document = json.loads((shelf.folder / UNUSED_NAME).read_text())
    assert document["format"] == "outpost-unused/1"
