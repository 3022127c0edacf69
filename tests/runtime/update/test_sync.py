"""From signed offers to candidates, over sources that fail, lie and end in the middle."""

import hashlib
import itertools
import shutil
from functools import partial

import pytest
from outpost_runtime.bundle import read_bundle, verify
from outpost_runtime.cli.main import main
from outpost_runtime.errors import (
    BundleError,
    BusyError,
    FetchError,
    NotFoundError,
    StoreError,
    TrustError,
)
from outpost_runtime.store import Store
from outpost_runtime.update import activation
from outpost_runtime.update import sources as sources_module
from outpost_runtime.update.alone import pass_gates
from outpost_runtime.update.box import open_box
from outpost_runtime.update.bringing import Wishes
from outpost_runtime.update.content_keys import content_key_id
from outpost_runtime.update.fetch.failover import FailoverFetcher
from outpost_runtime.update.offer import Rollout
from outpost_runtime.update.release import block_path
from outpost_runtime.update.reporting import report
from outpost_runtime.update.sources import Sources
from outpost_runtime.update.sync import repair, sync

from tests.support.candidates import adapter_of, spoiled, version_of
from tests.support.fixtures import ADAPTERS, CLASSIFIER, DECODER
from tests.support.fleet import Fleet
from tests.support.power import cut_at, cuts_of
from tests.support.publisher import NOW
from tests.support.sealed import Blocks, released

_NAME = "tiny-classifier"
_OTHER_KEY = hashlib.sha256(b"a content key after a box was stolen").digest()


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture
def box(fleet, tmp_path):
    return fleet.box(tmp_path / "store")


def _served(box, fleet, bundle, **changes):
    """Publish, fetch, pass the gate, and commit."""
    fleet.publish(bundle, **changes)
    fleet.update(box)
    pass_gates(box.store)
    name = bundle.manifest.name
    assert box.store.slot(name).active == bundle.digest
    box.store.change(lambda slots: activation.commit(name, slots[name], "", 1))


def _block_of(fleet, folder):
    """The path and the bytes of a block that only this bundle has."""
    *_, last = released(read_bundle(folder), Blocks()).blocks()
    path = block_path(last.id)
    return path, fleet.publisher.files[path]


def _size(folder):
    return sum({b.id: b.stored for b in released(read_bundle(folder), Blocks()).blocks()}.values())


def test_a_first_bundle_is_fetched_staged_gated_and_served(fleet, box):
    bundle = read_bundle(CLASSIFIER)
    fleet.publish(bundle)
    outcome = fleet.update(box)
    assert outcome.staged == (_NAME,)
    assert box.store.slot(_NAME).candidate.bundle == bundle.digest
    assert box.store.slot(_NAME).active is None
    pass_gates(box.store)
    assert box.store.slot(_NAME).active == bundle.digest
    verify(box.store.active(_NAME))
    assert fleet.update(box).reasons == {_NAME: "is up to date"}


def test_an_idle_poll_is_two_requests_and_less_than_a_kilobyte(fleet, box):
    _served(box, fleet, read_bundle(CLASSIFIER))
    source = fleet.publisher.fetcher()
    fleet.update(box, source)
    assert len(source.requests) == 2
    assert source.given <= 1000


def test_plain_weights_lie_nowhere_in_the_store(fleet, box):
    _served(box, fleet, read_bundle(CLASSIFIER))
    weights = (CLASSIFIER / "model.onnx.data").read_bytes()
    windows = [weights[at : at + 64] for at in range(1000, len(weights), 10_000)]
    files = [p.read_bytes() for p in box.store.folder.rglob("*") if p.is_file()]
    assert not any(window in data for window in windows for data in files)
    assert any(window in weights for window in windows)


def test_what_is_here_is_not_fetched_again(fleet, box, tmp_path):
    _served(box, fleet, read_bundle(CLASSIFIER))
    fleet.publish(version_of(CLASSIFIER, tmp_path, "2"))
    source = fleet.publisher.fetcher()
    outcome = fleet.update(box, source)
    blocks = [path for path in source.requests if path.startswith("blocks/")]
    assert len(blocks) == 1  # the manifest's
    assert outcome.plan.fetched < 4000


def test_deltas_are_taken_where_they_cost_less(fleet, box, tmp_path):
    old = version_of(CLASSIFIER, tmp_path, "1")
    _served(box, fleet, old)
    new = version_of(CLASSIFIER, tmp_path, "2")
    fleet.publish(new, predecessor=old)
    outcome = fleet.update(box)
    assert outcome.plan.fetched < outcome.plan.whole
    pass_gates(box.store)
    assert box.store.slot(_NAME).active == new.digest


def test_a_dry_run_shows_the_plan_and_fetches_no_block(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    source = fleet.publisher.fetcher()
    outcome = fleet.update(box, source, dry_run=True)
    assert outcome.plan.fetched > 100_000
    assert outcome.staged == ()
    assert not any(path.startswith("blocks/") for path in source.requests)
    assert box.store.slots() == {}


@pytest.mark.incident("a link that is cut", where="at any block; the next update goes on")
def test_an_update_that_is_cut_off_goes_on_from_there(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    came = 0

    def progress(count):
        nonlocal came
        came += count

    with pytest.raises(FetchError, match="was stopped"):
        fleet.update(box, progress=progress, should_stop=lambda: came > 50_000)
    first = came
    outcome = fleet.update(box, progress=progress)
    assert outcome.staged == (_NAME,)
    assert 0 < outcome.plan.fetched < outcome.plan.total - 40_000
    assert came - first == outcome.plan.fetched


@pytest.mark.slow
@pytest.mark.incident("power cut", where="between any two changes of the disk by an update")
def test_a_cut_anywhere_in_an_update_leaves_the_old_model_and_the_next_one_ends(fleet, tmp_path):
    old, new = (version_of(CLASSIFIER, tmp_path, version) for version in "12")
    whole = fleet.box(tmp_path / "whole")
    _served(whole, fleet, old)
    fleet.publish(new)
    stores = (tmp_path / f"{number}" for number in itertools.count())
    copy = partial(shutil.copytree, whole.store.folder)
    total = cuts_of(lambda: fleet.update(open_box(copy(next(stores)))))
    assert total > 50
    for number in range(total):
        box = open_box(copy(next(stores)))
        assert cut_at(number, partial(fleet.update, box))
        box = open_box(box.store.folder)
        assert box.store.active(_NAME).digest == old.digest
        verify(box.store.active(_NAME))
        fleet.update(box)
        assert box.store.slot(_NAME).candidate.bundle == new.digest
        verify(box.store.bundle(new.digest))
        verify(box.store.active(_NAME))
        shutil.rmtree(box.store.folder)


@pytest.mark.incident("a link that is cut", where="the served bundle comes under a new content key")
def test_a_bundle_that_is_published_again_under_a_new_key_stays_as_it_is_here(fleet, box):
    bundle = read_bundle(CLASSIFIER)
    _served(box, fleet, bundle)
    blocks = box.store.blocks.ids()
    fleet.publish(bundle, key=_OTHER_KEY)
    fleet.grant(box, _OTHER_KEY)
    outcome = fleet.update(box, should_stop=lambda: True)
    assert outcome.plan.fetched == 0
    pass_gates(box.store)
    assert box.store.slot(_NAME).release == 2
    assert box.store.blocks.ids() == blocks
    verify(Store(box.store.folder).active(_NAME))


def test_a_bundle_that_is_not_whole_here_comes_as_it_is_published_now(fleet, box):
    bundle = read_bundle(CLASSIFIER)
    _served(box, fleet, bundle)
    block = next(box.store.releases.read(bundle.digest).blocks())
    box.store.blocks.remove([block.id])
    fleet.publish(bundle, key=_OTHER_KEY)
    fleet.grant(box, _OTHER_KEY)
    assert fleet.update(box).staged == (_NAME,)
    pass_gates(box.store)
    assert box.store.releases.read(bundle.digest).key == content_key_id(_OTHER_KEY)
    verify(box.store.active(_NAME))


@pytest.mark.incident("a block that is not what was signed", where="in the repository")
def test_a_wrong_block_is_refused_and_nothing_is_staged(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    path = next(p for p in fleet.publisher.files if p.startswith("blocks/"))
    data = fleet.publisher.files[path]
    fleet.publisher.files[path] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(FetchError):
        fleet.update(box)
    assert box.store.slots() == {}
    fleet.publisher.files[path] = data
    assert fleet.update(box).staged == (_NAME,)


@pytest.mark.incident("a block that is missing", where="in the repository")
def test_a_missing_block_is_named_and_the_rest_is_kept(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    last = released(read_bundle(CLASSIFIER), Blocks()).files[-1].blocks[-1]
    path = block_path(last.id)
    data = fleet.publisher.files.pop(path)
    with pytest.raises((FetchError, NotFoundError), match=path[-12:]):
        fleet.update(box)
    fleet.publisher.files[path] = data
    outcome = fleet.update(box)
    assert outcome.plan.fetched <= 2 * len(data)


@pytest.mark.incident("a damaged block", where="on the box, under a model that is served")
def test_a_block_that_the_disk_has_damaged_is_fetched_again(fleet, box, tmp_path):
    old = read_bundle(CLASSIFIER)
    _served(box, fleet, old)
    block = max(box.store.blocks.sizes().items(), key=lambda item: item[1])[0]
    path = box.store.blocks.folder / block_path(block).removeprefix("blocks/")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError):
        verify(box.store.active(_NAME))
    sources = Sources(fetchers=(fleet.publisher.fetcher(),))
    assert len(repair(box, sources, Wishes()).steps) == 1
    verify(box.store.active(_NAME))
    assert repair(box, sources, Wishes()) is None
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    fleet.publish(version_of(CLASSIFIER, tmp_path, "2"))
    fleet.update(box)
    verify(box.store.active(_NAME))


@pytest.mark.incident("a box that was not granted the key", where="first update")
def test_without_a_grant_the_box_is_told_whom_to_ask(fleet, tmp_path):
    box = fleet.box(tmp_path / "store")
    fleet.publisher.files = {
        path: data for path, data in fleet.publisher.files.items() if not path.startswith("keys/")
    }
    fleet.publish(read_bundle(CLASSIFIER))
    with pytest.raises(TrustError, match="was not granted to this box"):
        fleet.update(box)
    fleet.grant(box)
    assert fleet.update(box).staged == (_NAME,)


@pytest.mark.incident("a genuine but older stick", where="import")
def test_an_older_stick_is_refused(fleet, box, tmp_path):
    fleet.publish(read_bundle(CLASSIFIER))
    stick = fleet.publisher.frozen()
    new = version_of(CLASSIFIER, tmp_path, "2")
    fleet.publish(new)
    fleet.update(box)
    pass_gates(box.store)
    with pytest.raises(TrustError):
        fleet.update(box, fleet.publisher.fetcher(stick), from_stick=True)
    assert box.store.slot(_NAME).active == new.digest


@pytest.mark.incident("a repository that goes back", where="sync, an older timestamp")
def test_a_repository_that_was_restored_from_a_backup_changes_nothing(fleet, box, tmp_path):
    fleet.publish(read_bundle(CLASSIFIER))
    backup = fleet.publisher.frozen()
    new = version_of(CLASSIFIER, tmp_path, "2")
    fleet.publish(new)
    assert fleet.update(box).candidates == {_NAME: new.digest}
    pass_gates(box.store)
    before = box.store.slot(_NAME)
    with pytest.raises(TrustError, match="out of date"):
        fleet.update(box, fleet.publisher.fetcher(backup))
    assert box.store.slot(_NAME) == before
    fleet.publish(version_of(CLASSIFIER, tmp_path, "3"))
    assert fleet.update(box).staged == (_NAME,)


def test_a_stick_works_where_no_network_ever_was(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    half_a_year = NOW + 150 * 86_400
    with pytest.raises(TrustError, match="expired"):
        fleet.update(box, now=half_a_year)
    outcome = fleet.update(box, fleet.publisher.fetcher(), now=half_a_year, from_stick=True)
    assert outcome.staged == (_NAME,)


@pytest.mark.incident("a clock of 1970", where="sync")
def test_a_clock_of_1970_installs_all_the_same(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    assert fleet.update(box, now=0.0).staged == (_NAME,)


@pytest.mark.incident("a clock of 2100", where="sync")
def test_a_clock_of_2100_installs_nothing_and_is_forgotten_once_it_is_right(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    with pytest.raises(TrustError, match="expired"):
        fleet.update(box, now=4_102_444_800.0)
    assert fleet.update(box, now=NOW).staged == (_NAME,)


def test_a_halted_release_is_not_taken_and_a_later_one_is(fleet, box, tmp_path):
    fleet.publish(read_bundle(CLASSIFIER), rollout=Rollout(percent=0))
    assert "is halted" in fleet.update(box).reasons[_NAME]
    fleet.publish(version_of(CLASSIFIER, tmp_path, "2"))
    assert fleet.update(box).staged == (_NAME,)


@pytest.mark.incident("a bundle that answers wrongly", where="published, fetched, gated")
def test_a_bad_bundle_is_refused_by_the_gate_and_not_fetched_again(fleet, box, tmp_path):
    good = read_bundle(CLASSIFIER)
    _served(box, fleet, good)
    bad = spoiled(CLASSIFIER, tmp_path, "2")
    fleet.publish(bad)
    fleet.update(box)
    pass_gates(box.store)
    assert box.store.slot(_NAME).active == good.digest
    outcome = fleet.update(box)
    assert "has failed here before" in outcome.reasons[_NAME]
    assert outcome.plan is None


def test_a_base_and_its_adapter_are_fetched_and_served_together(fleet, box, tmp_path):
    base = version_of(DECODER, tmp_path, "2")
    adapter = adapter_of(ADAPTERS[0], base, tmp_path, "2")
    fleet.publish(adapter)
    assert "its base 'tiny-decoder' is not here" in fleet.update(box).reasons[ADAPTERS[0].name]
    fleet.publish(base)
    assert set(fleet.update(box).staged) == {"tiny-decoder", ADAPTERS[0].name}
    pass_gates(box.store)
    assert {name: slot.active for name, slot in box.store.slots().items()} == {
        "tiny-decoder": base.digest,
        ADAPTERS[0].name: adapter.digest,
    }


@pytest.mark.incident("a disk without room", where="plan")
def test_what_does_not_fit_is_refused_with_figures_before_the_first_byte(fleet, box, monkeypatch):
    fleet.publish(read_bundle(CLASSIFIER))
    usage = shutil.disk_usage(box.store.folder)._replace(free=16_800_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    source = fleet.publisher.fetcher()
    with pytest.raises(StoreError, match="16,800,000 are free"):
        fleet.update(box, source)
    assert not any(path.startswith("blocks/") for path in source.requests)


def test_on_a_metered_link_large_updates_wait(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    with pytest.raises(FetchError, match="on a metered link 1,000 may be fetched"):
        fleet.update(box, most_bytes=1000)


@pytest.mark.incident("two updates at once", where="while the first one fetches")
def test_a_second_update_is_refused_and_the_first_one_ends(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    refused = []

    def update_again(_):
        with pytest.raises(BusyError):
            fleet.update(box)
        refused.append(box.store.slots())

    assert fleet.update(box, progress=update_again).staged == (_NAME,)
    assert refused
    assert not any(refused)
    assert fleet.update(box).plan is None


def test_old_blocks_go_when_no_slot_needs_them(fleet, box, tmp_path):
    for version in "123":
        bundle = version_of(CLASSIFIER, tmp_path, version)
        _served(box, fleet, bundle)
    assert box.store.releases.bundles() == set(box.store.slot(_NAME).names())
    assert box.store.blocks.ids() == box.store.releases.blocks()


def test_a_provisioned_box_takes_nothing_unsigned(box):
    with pytest.raises(StoreError, match="signed bundles only"):
        box.store.add(CLASSIFIER)


def test_a_store_with_models_added_by_hand_is_not_provisioned(fleet, tmp_path):
    Store(tmp_path / "store").add(CLASSIFIER)
    with pytest.raises(StoreError, match="added by hand"):
        fleet.box(tmp_path / "store")


def test_the_report_says_what_the_box_has(fleet, box):
    _served(box, fleet, read_bundle(CLASSIFIER))
    said = report(box, NOW)
    assert said.models[_NAME].active.bundle == read_bundle(CLASSIFIER).digest
    assert [event.what for event in said.history] == ["staged", "activated", "committed"]


@pytest.mark.incident("a source that lies", where="metadata of a mirror near by")
def test_a_mirror_that_lies_about_metadata_is_left_for_the_repository(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    lies = fleet.publisher.frozen()
    lies["metadata/timestamp.json"] = lies["metadata/timestamp.json"].replace(b"1", b"2", 1)
    failover = FailoverFetcher([fleet.publisher.fetcher(lies), fleet.publisher.fetcher()])
    sources = Sources(fetchers=(failover,), failovers=(failover,))
    assert sync(box, sources, NOW, Wishes()).staged == (_NAME,)


def _nothing(_):
    return {}


def _junk(folder):
    def files(genuine):
        return {
            path: bytes(len(data)) if path.startswith(folder) else data
            for path, data in genuine.items()
        }

    return files


@pytest.mark.incident("a source that lies", where="anything of a mirror near by, before the blocks")
@pytest.mark.parametrize("lie", [_nothing, _junk("metadata/"), _junk("targets/"), _junk("keys/")])
def test_a_mirror_of_nothing_or_of_junk_is_left_for_the_repository(fleet, box, lie):
    fleet.publish(read_bundle(CLASSIFIER))
    fleet.publish(read_bundle(DECODER))
    mirror = fleet.publisher.fetcher(lie(fleet.publisher.frozen()))
    failover = FailoverFetcher([mirror, fleet.publisher.fetcher()])
    sources = Sources(fetchers=(failover,), failovers=(failover,))
    assert set(sync(box, sources, NOW, Wishes()).staged) == {_NAME, "tiny-decoder"}


@pytest.mark.incident("a source that lies", where="a mirror that has nothing hides a new root")
def test_a_mirror_of_nothing_hides_no_new_root(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    fleet.publisher.rotate("timestamp", "snapshot")
    failover = FailoverFetcher([fleet.publisher.fetcher({}), fleet.publisher.fetcher()])
    sources = Sources(fetchers=(failover,), failovers=(failover,))
    assert sync(box, sources, NOW, Wishes()).staged == (_NAME,)


def test_a_release_that_no_source_has_right_costs_no_other_name_its_sources(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    wrong = fleet.publish(read_bundle(DECODER)).stored_path
    fleet.publisher.files[wrong] = bytes(len(fleet.publisher.files[wrong]))
    failover = FailoverFetcher([fleet.publisher.fetcher(), fleet.publisher.fetcher()])
    outcome = sync(box, Sources(fetchers=(failover,), failovers=(failover,)), NOW, Wishes())
    assert outcome.staged == (_NAME,)
    assert "tiny-decoder" in outcome.reasons


@pytest.mark.parametrize(("more", "asked"), [([], ("http://mirror",)), (["--repo", "here"], ())])
def test_the_command_asks_mirrors_near_by_where_its_configuration_says_so(
    box, tmp_path, monkeypatch, more, asked
):
    opened = []

    def open_sources(_, policy, mirrors=()):
        opened.append((policy.mirrors, mirrors))
        raise FetchError("This is as far as the test goes.")

    monkeypatch.setattr(sources_module, "mirrors_near_by", lambda: ("http://mirror",))
    monkeypatch.setattr(sources_module, "open_sources", open_sources)
    config = tmp_path / "outpost.toml"
    config.write_text("[update]\nmirrors = true\n")
    words = ["sync", "--store", str(box.store.folder), "--config", str(config)]
    assert main([*words, *more]) == 1
    assert opened == [(True, asked)]


# What a review found.


def test_one_name_that_cannot_come_holds_back_no_other(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    broken = fleet.publish(read_bundle(DECODER))
    del fleet.publisher.files[broken.stored_path]
    outcome = fleet.update(box)
    assert outcome.staged == (_NAME,)
    assert "tiny-decoder" in outcome.reasons


@pytest.mark.incident("a block that is missing", where="in the repository, of one model of two")
def test_a_block_that_one_name_lacks_holds_back_no_other(fleet, box):
    fleet.publish(read_bundle(CLASSIFIER))
    fleet.publish(read_bundle(DECODER))
    path, data = _block_of(fleet, DECODER)
    del fleet.publisher.files[path]
    outcome = fleet.update(box)
    assert outcome.staged == (_NAME,)
    assert path[-12:] in outcome.reasons["tiny-decoder"]
    fleet.publisher.files[path] = data
    outcome = fleet.update(box)
    assert outcome.staged == ("tiny-decoder",)
    assert outcome.plan.fetched <= 3 * (1 << 14) + len(data)  # what came before has stayed


@pytest.mark.incident("a block that is not what was signed", where="in the only source, one of two")
def test_a_block_that_is_wrong_in_the_only_source_holds_back_no_other_name(fleet, box):
    fleet.publish(read_bundle(DECODER))
    fleet.publish(read_bundle(CLASSIFIER))
    path, data = _block_of(fleet, DECODER)
    fleet.publisher.files[path] = bytes(len(data))
    failover = FailoverFetcher([fleet.publisher.fetcher()])
    outcome = sync(box, Sources(fetchers=(failover,), failovers=(failover,)), NOW, Wishes())
    assert outcome.staged == (_NAME,)
    assert "wrong bytes" in outcome.reasons["tiny-decoder"]


def test_what_costs_too_much_on_a_metered_link_holds_back_no_small_update(fleet, box):
    fleet.publish(read_bundle(DECODER))
    fleet.publish(read_bundle(CLASSIFIER))
    small = fleet.update(box, dry_run=True).plan.fetched - _size(DECODER)
    outcome = fleet.update(box, most_bytes=small)
    assert outcome.staged == (_NAME,)
    assert "metered" in outcome.reasons["tiny-decoder"]
    assert outcome.plan.fetched <= small


def test_a_base_and_its_adapter_stay_together_where_another_name_fails(fleet, box, tmp_path):
    base = version_of(DECODER, tmp_path, "2")
    adapter = adapter_of(ADAPTERS[0], base, tmp_path, "2")
    for bundle in (base, adapter, read_bundle(CLASSIFIER)):
        fleet.publish(bundle)
    path, _ = _block_of(fleet, adapter.folder)
    del fleet.publisher.files[path]
    outcome = fleet.update(box)
    assert outcome.staged == (_NAME,)
    assert outcome.reasons.keys() == {"tiny-decoder", ADAPTERS[0].name}


def test_a_damaged_release_on_the_disk_comes_again(fleet, box):
    bundle = read_bundle(CLASSIFIER)
    _served(box, fleet, bundle)
    path = box.store.folder / "releases" / f"{bundle.digest}.json"
    path.write_bytes(path.read_bytes()[:100])
    blocks = box.store.blocks.ids()
    assert fleet.update(box).staged == (_NAME,)
    assert box.store.blocks.ids() >= blocks
    verify(box.store.active(_NAME))


def test_an_update_takes_no_block_of_a_model_whose_slot_is_damaged(fleet, box):
    _served(box, fleet, read_bundle(CLASSIFIER))
    blocks = box.store.blocks.ids()
    (box.store.folder / "slots" / f"{_NAME}.json").write_text("damaged")
    fleet.publish(read_bundle(DECODER))
    fleet.update(box)
    assert box.store.blocks.ids() >= blocks


@pytest.mark.incident("disk full", where="before an update's first write")
def test_a_full_disk_ends_an_update_with_one_message(fleet, box, monkeypatch):
    fleet.publish(read_bundle(CLASSIFIER))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outpost_runtime.update.release_files.write_durably", full)
    with pytest.raises(StoreError, match="No space left on device"):
        fleet.update(box)
