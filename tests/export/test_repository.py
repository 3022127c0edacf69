"""A repository as boxes see it: at every moment of a publication, and after every cut."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
from outpost_export.errors import PublishError
from outpost_export.publishing.ceremony import add_family, remove_family, renew, replace_key
from outpost_export.publishing.releases import RolloutChange, add_release, set_rollout
from outpost_export.publishing.repository import Repository
from outpost_export.publishing.signed_shelf import SignedShelf
from outpost_export.publishing.signing import Lifetimes
from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import BusyError, NotFoundError, TrustError
from outpost_runtime.update.metadata import Metadata
from outpost_runtime.update.offer import Offer, Rollout
from outpost_runtime.update.release import Block, Release, ReleasedFile, encode_release
from outpost_runtime.update.trust import read_root
from outpost_runtime.update.trust_store import TrustStore
from securesystemslib.signer import CryptoSigner

from tests.support.publisher import DAY, NOW
from tests.support.signed_repositories import KeyBag, new_repository, source_of


@pytest.fixture
def bag():
    return KeyBag()


@pytest.fixture
def repository(tmp_path, bag):
    return new_repository(tmp_path / "repo", bag)


@pytest.fixture
def box(tmp_path, repository):
    root = (repository.folder / "metadata" / "1.root.json").read_bytes()
    return TrustStore.provision(tmp_path / "trust", root)


def _offer(name="press", version="1", **fields):
    return Offer(
        name=name, version=version, release=0, target="cpu-int8", bundle="a" * 64, **fields
    )


def _release(name="press", version="1", target="cpu-int8"):
    block = Block(id="c" * 64, size=1, stored=50)
    return Release(
        name=name, version=version, target=target, bundle="a" * 64, base=None, key="b" * 64,
        memory_bytes=1, files=(ReleasedFile(name="manifest.json", blocks=(block,)),), deltas=(),
    )  # fmt: skip


def _publish(repository, bag, *, name="press", version="1", family="press", now=NOW):
    release = encode_release(_release(name, version))
    return add_release(repository, family, _offer(name, version), release, bag, now)


def _offered(box, repository, now=NOW):
    refreshed = box.refresh(source_of(repository.folder), now)
    assert refreshed.refused == ()
    return sorted((one.offer.name, one.offer.release) for one in refreshed.offers)


def _keyid(bag, role):
    return read_root(bag.kept).roles[role].keyids[0]


def test_a_box_gets_what_was_released(repository, bag, box):
    signed = _publish(repository, bag)
    source = source_of(repository.folder)
    assert box.refresh(source, NOW).offers == (signed,)
    assert box.release(source, signed) == _release()


def test_release_counters_count_up_over_versions_and_targets(repository, bag, box):
    _publish(repository, bag)
    other = dataclasses.replace(_offer(), target="cpu-int4")
    add_release(repository, "press", other, encode_release(_release(target="cpu-int4")), bag, NOW)
    _publish(repository, bag, version="2")
    _publish(repository, bag, name="bee")
    assert _offered(box, repository) == [("bee", 1), ("press", 1), ("press", 2), ("press", 3)]


def test_a_release_of_another_bundle_than_its_offer_is_not_published(repository, bag, box):
    with pytest.raises(TrustError):
        add_release(repository, "press", _offer(), encode_release(_release("bee")), bag, NOW)
    assert _offered(box, repository) == []


def test_a_name_is_published_by_one_family_only(repository, bag):
    add_family(repository, "bee", bag.make, bag, NOW)
    _publish(repository, bag)
    with pytest.raises(PublishError, match="belongs to the family 'press'"):
        _publish(repository, bag, family="bee")


def test_a_family_that_is_not_there_is_told(repository, bag):
    with pytest.raises(PublishError, match="has no family 'bee'; it has press"):
        _publish(repository, bag, family="bee")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"devices": ("Press Terminal",)}, "devices"),
        ({"minimum_runtime": "1.x"}, "minimum_runtime"),
        ({"rollout": Rollout(rings=("Ring 1",))}, "rings"),
        ({"rollout": Rollout(not_before=-5)}, "not_before"),
    ],
)
def test_an_offer_that_no_box_could_read_is_not_signed(repository, bag, fields, said):
    before = source_of(repository.folder).files
    offer, release = _offer(**fields), encode_release(_release())
    with pytest.raises(PublishError, match=f"No box could read this offer.*{said}"):
        add_release(repository, "press", offer, release, bag, NOW)
    assert source_of(repository.folder).files == before
    assert _publish(repository, bag).offer.release == 1


def test_a_rollout_that_no_box_could_read_is_not_signed(repository, bag, box):
    _publish(repository, bag)
    with pytest.raises(PublishError, match="rings"):
        set_rollout(repository, "press", RolloutChange(rings=("Ring 1",)), bag, NOW)
    assert _offered(box, repository) == [("press", 1)]


def test_a_rollout_is_changed_without_a_new_release(repository, bag, box):
    _publish(repository, bag)
    set_rollout(repository, "press", RolloutChange(percent=10, rings=("pilot",)), bag, NOW)
    (signed,) = set_rollout(repository, "press", RolloutChange(percent=50), bag, NOW)
    assert signed.offer.rollout == Rollout(rings=("pilot",), percent=50)
    assert box.refresh(source_of(repository.folder), NOW).offers == (signed,)
    (halted,) = set_rollout(repository, "press", RolloutChange(percent=0), bag, NOW)
    assert halted.offer.release == signed.offer.release == 1
    assert box.refresh(source_of(repository.folder), NOW).offers == (halted,)


def test_a_rollout_does_not_end_before_it_begins_but_is_always_halted(repository, bag):
    _publish(repository, bag)
    set_rollout(repository, "press", RolloutChange(not_before=200), bag, NOW)
    with pytest.raises(PublishError, match="would end before it begins"):
        set_rollout(repository, "press", RolloutChange(not_after=100), bag, NOW)
    window = RolloutChange(not_before=100, not_after=200)
    (signed,) = set_rollout(repository, "press", window, bag, NOW)
    assert (signed.offer.rollout.not_before, signed.offer.rollout.not_after) == (100, 200)
    halt = RolloutChange(percent=0)
    turned = Rollout(not_before=2, not_after=1)  # of a publisher who did not look
    assert halt.applied(turned) == dataclasses.replace(turned, percent=0)


def test_a_halt_reaches_every_target_of_the_newest_version_or_one_release(repository, bag):
    _publish(repository, bag)
    _publish(repository, bag, version="2")
    other = dataclasses.replace(_offer(version="2"), target="cpu-int4")
    release = encode_release(_release(version="2", target="cpu-int4"))
    add_release(repository, "press", other, release, bag, NOW)
    halt = RolloutChange(percent=0)
    changed = set_rollout(repository, "press", halt, bag, NOW)
    assert [signed.offer.release for signed in changed] == [2, 3]
    changed = set_rollout(repository, "press", halt, bag, NOW, release=1)
    assert [signed.offer.release for signed in changed] == [1]
    for name, release in (("bee", None), ("press", 9)):
        with pytest.raises(NotFoundError):
            set_rollout(repository, name, halt, bag, NOW, release=release)


def test_a_shelf_reads_back_what_it_signed(repository, bag):
    shelf = SignedShelf(repository, bag, lambda: NOW)
    offer = shelf.add("press", _offer(), encode_release(_release()))
    assert shelf.offers() == (offer,)
    assert offer.release == 1
    assert shelf.release(offer) == _release()
    (path,) = shelf.files()
    (repository.folder / path).write_bytes(encode_release(_release("bee")))
    with pytest.raises(TrustError):
        shelf.release(offer)
    with pytest.raises(TrustError, match="not offered"):
        shelf.release(_offer())


def _refresh(repository, bag, now=NOW):
    with repository.editing(bag, now) as draft:
        draft.changed.add("timestamp")


def test_a_refresh_signs_two_files_and_makes_no_new_generation(repository, bag, box):
    _offered(box, repository)
    before = source_of(repository.folder).files
    _refresh(repository, bag, NOW + DAY)
    after = source_of(repository.folder).files
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {"metadata/timestamp.json", "metadata/stick.json"}
    source = source_of(repository.folder)
    assert not box.refresh(source, NOW + DAY).changed
    assert source.given <= 1024


def test_a_refresh_keeps_a_snapshot_alive_for_as_long_as_a_stick(repository, bag, box):
    late = NOW + 300 * DAY
    _refresh(repository, bag, late)
    assert repository.read(bag).snapshot.version == 2
    box.refresh(source_of(repository.folder), late + 99 * DAY, from_stick=True)


def test_an_edit_that_fails_publishes_nothing(repository, bag):
    before = source_of(repository.folder).files
    with pytest.raises(PublishError), repository.editing(bag, NOW) as draft:
        draft.family("press"), draft.family("bee")
    assert source_of(repository.folder).files == before


@pytest.mark.parametrize("role", ["timestamp", "root", "targets"])
def test_a_missing_key_publishes_nothing(repository, bag, role):
    bag.lost = set(repository.read(bag).root.roles[role].keyids[:2])
    before = source_of(repository.folder).files
    with pytest.raises(PublishError, match="of its keys"):
        renew(repository, "online" if role == "timestamp" else role, bag, NOW)
    assert source_of(repository.folder).files == before


def test_what_somebody_without_keys_wrote_is_not_signed(repository, bag):
    _publish(repository, bag)
    path = repository.folder / "metadata" / "2.family-press.json"
    path.write_bytes(
        path.read_bytes().replace(b'"percent"', b'"Percent"').replace(b"a" * 9, b"e" * 9)
    )
    with pytest.raises(TrustError):
        _publish(repository, bag)


def _forged_root(bag, version):
    root, thief = read_root(bag.root()), CryptoSigner.generate_ed25519()
    root.add_key(thief.public_key, "root")
    root.roles["root"].threshold, root.version = 1, version
    forged = Metadata(root)
    forged.sign(thief)
    return forged.to_bytes(), thief.public_key.keyid


def test_a_root_that_somebody_without_keys_put_there_gets_no_successor(repository, bag, box):
    forged, thief = _forged_root(bag, 1)
    (repository.folder / "metadata" / "1.root.json").write_bytes(forged)
    renew(repository, "root", bag, NOW)
    assert thief not in repository.read(bag).root.keys
    assert _offered(box, repository) == []


def test_a_newer_root_of_somebody_without_keys_is_refused(repository, bag):
    forged, _ = _forged_root(bag, 2)
    (repository.folder / "metadata" / "2.root.json").write_bytes(forged)
    with pytest.raises(TrustError, match="signed by 0"):
        renew(repository, "root", bag, NOW)


def test_a_repository_that_was_put_back_is_refused(repository, bag, tmp_path):
    old = shutil.copytree(repository.folder, tmp_path / "old")
    renew(repository, "root", bag, NOW)
    with pytest.raises(TrustError, match="older state"):
        renew(Repository(old), "root", bag, NOW)


def test_a_clock_behind_the_last_publication_is_told(repository, bag):
    _refresh(repository, bag, NOW + DAY)
    with pytest.raises(PublishError, match="clock is behind"):
        _refresh(repository, bag, NOW)


@pytest.mark.incident("a clock of 2100", where="the publisher's, for one signature")
def test_a_clock_that_ran_ahead_once_is_undone_by_a_new_online_key(repository, bag, box):
    ahead = Repository(repository.folder, longest_pause=math.inf)
    _refresh(ahead, bag, 4_102_444_800)
    with pytest.raises(TrustError, match="expired"):
        box.refresh(source_of(repository.folder), NOW)
    with pytest.raises(PublishError, match="clock is behind"):
        _refresh(repository, bag, NOW + DAY)
    replace_key(repository, "online", None, bag.make, bag, NOW + DAY)
    _publish(repository, bag, now=NOW + 2 * DAY)
    assert _offered(box, repository, NOW + 2 * DAY) == [("press", 1)]


def test_a_clock_far_ahead_of_the_last_publication_is_doubted(repository, bag):
    with pytest.raises(PublishError, match="says 2100-01-01"):
        _refresh(repository, bag, 4_102_444_800)
    _refresh(repository, bag, NOW + 399 * DAY)


def test_metadata_that_boxes_would_refuse_is_not_published(repository, bag, monkeypatch):
    monkeypatch.setattr("outpost_runtime.update.generation.MAX_TARGETS_BYTES", 1000)
    _publish(repository, bag)
    with pytest.raises(TrustError, match="are allowed"):
        _publish(repository, bag, name="a-second-name-that-is-one-too-many")
    assert repository.read(bag).families["press"].version == 2


def test_two_publishers_at_a_time_are_refused(repository, bag):
    with repository.editing(bag, NOW) as draft:
        draft.changed.add("timestamp")
        with pytest.raises(BusyError), Repository(repository.folder).editing(bag, NOW):
            pass


def test_no_repository_is_made_by_editing_none(tmp_path, bag):
    with pytest.raises(PublishError, match="is no repository"):
        _refresh(Repository(tmp_path / "nothing"), bag)
    assert not (tmp_path / "nothing").exists()


def test_a_repository_is_not_made_twice(repository, bag):
    with pytest.raises(PublishError, match="already"):
        new_repository(repository.folder, bag)


class TestKeys:
    def test_every_role_gets_new_keys_and_boxes_follow(self, repository, bag, box):
        _publish(repository, bag)
        _offered(box, repository)
        for role in ("online", "targets", "family-press"):
            replace_key(repository, role, None, bag.make, bag, NOW)
            assert _offered(box, repository) == [("press", 1)]
        old = _keyid(bag, "root")
        replace_key(repository, "root", old[:8], bag.make, bag, NOW)
        assert _offered(box, repository) == [("press", 1)]
        assert old not in repository.read(bag).root.roles["root"].keyids
        assert repository.read(bag).root.roles["root"].threshold == 2

    def test_a_box_that_was_away_for_all_rotations_follows_them(self, repository, bag, box):
        for role in ("online", "targets", "online"):
            replace_key(repository, role, None, bag.make, bag, NOW)
        for _ in range(3):
            replace_key(repository, "root", _keyid(bag, "root"), bag.make, bag, NOW)
        _publish(repository, bag)
        assert _offered(box, repository) == [("press", 1)]

    def test_a_lost_key_is_replaced_without_it(self, repository, bag, box):
        for role in ("timestamp", "targets", "root"):
            lost = _keyid(bag, role)
            bag.lost.add(lost)
            name = "online" if role == "timestamp" else role
            replace_key(repository, name, lost, bag.make, bag, NOW)
        _publish(repository, bag)
        assert _offered(box, repository) == [("press", 1)]

    def test_a_root_key_is_replaced_where_the_online_key_is_not(self, repository, bag, box):
        bag.lost.add(_keyid(bag, "timestamp"))
        replace_key(repository, "root", _keyid(bag, "root"), bag.make, bag, NOW)
        assert _offered(box, repository) == []

    def test_one_of_several_keys_must_be_named_before_a_new_one_is_made(self, repository, bag):
        made = len(bag.keys)
        for old in (None, "", "no such id"):
            with pytest.raises(PublishError, match="not one"):
                replace_key(repository, "root", old, bag.make, bag, NOW)
        with pytest.raises(PublishError, match="no role"):
            replace_key(repository, "snapshots", None, bag.make, bag, NOW)
        assert len(bag.keys) == made

    def test_a_family_may_be_delegated_to_a_key_elsewhere(self, repository, bag, box):
        elsewhere = KeyBag()
        elsewhere.keep_root(bag.root())
        add_family(repository, "bee", elsewhere.make, bag, NOW)
        _publish(repository, bag)
        refreshed = box.refresh(source_of(repository.folder), NOW)
        assert [one.what for one in refreshed.refused] == ["bee"]
        with pytest.raises(PublishError, match="family-bee must be signed"):
            _publish(repository, bag, name="bee", family="bee")
        online = _keyid(bag, "timestamp")  # what the owner of a family needs beside its key
        elsewhere.keys[online] = bag.keys[online]
        _publish(repository, elsewhere, name="bee", family="bee")
        assert _offered(box, repository) == [("bee", 1), ("press", 1)]

    def test_a_withdrawn_familys_models_come_back_under_another_familys_name(
        self, repository, bag, box
    ):
        for version in "123":
            signed = _publish(repository, bag, version=version)
        _offered(box, repository)
        box.accept(signed)
        remove_family(repository, "press", bag, NOW)
        assert _offered(box, repository) == []
        made = len(bag.keys)
        with pytest.raises(PublishError, match="There was a family 'press'"):
            add_family(repository, "press", bag.make, bag, NOW)
        assert len(bag.keys) == made
        add_family(repository, "heirs", bag.make, bag, NOW)
        _publish(repository, bag, version="4", family="heirs")
        assert _offered(box, repository) == [("press", 1)]

    @pytest.mark.parametrize("name", ["", "Press", "../etc", "a/b", "a" * 64])
    def test_a_family_has_a_plain_name(self, repository, bag, name):
        with pytest.raises(PublishError, match="cannot be called"):
            add_family(repository, name, bag.make, bag, NOW)

    def test_renewing_makes_a_role_live_longer(self, repository, bag):
        renew(repository, "targets", bag, NOW + 100 * DAY)
        renew(repository, "family-press", bag, NOW + 100 * DAY)
        renew(repository, "root", bag, NOW + 100 * DAY)
        draft, life = repository.read(bag), Lifetimes()
        ends = [one.expires.timestamp() - 100 * DAY - NOW for one in (draft.targets, draft.root)]
        assert ends == [life.targets, life.root]
        assert draft.families["press"].version == 2


class Watched:
    """Writes durably, and lets somebody look after every write; or the power goes before one."""

    def __init__(self, look=lambda: None, lives=None):
        self.look = look
        self.lives = lives

    def __call__(self, path, data):
        if self.lives == 0:
            path.with_name(f".{path.name}.new").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        if self.lives is not None:
            self.lives -= 1
        write_durably(path, data)
        self.look()


EDITS = {
    "release": lambda repository, bag: _publish(repository, bag, version="2"),
    "refresh": _refresh,
    "new online key": lambda *at: replace_key(at[0], "online", None, at[1].make, at[1], NOW),
    "new targets key": lambda *at: replace_key(at[0], "targets", None, at[1].make, at[1], NOW),
    "new family": lambda *at: add_family(at[0], "bee", at[1].make, at[1], NOW),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_reader_never_sees_a_broken_repository(repository, bag, tmp_path, edit):
    _publish(repository, bag)
    root = (repository.folder / "metadata" / "1.root.json").read_bytes()
    seen = set()

    def look():
        new = TrustStore.provision(tmp_path / f"new-{len(list(tmp_path.iterdir()))}", root)
        for box in (new, old):
            seen.add(len(_offered(box, repository)))
        new.refresh(source_of(repository.folder), NOW, from_stick=True)

    old = TrustStore.provision(tmp_path / "old", root)
    look()
    EDITS[edit](Repository(repository.folder, write=Watched(look)), bag)
    look()
    assert seen == ({1, 2} if edit == "release" else {1})


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.incident("power cut", where="any write of a repository's metadata")
def test_a_cut_at_any_write_is_finished_or_undone(repository, bag, tmp_path, edit):
    _publish(repository, bag)
    root = bag.root()
    for lives in range(40):
        bag.keep_root(root)
        copy = Repository(Path(shutil.copytree(repository.folder, tmp_path / f"cut-{lives}")))
        try:
            EDITS[edit](Repository(copy.folder, write=Watched(lives=lives)), bag)
            break
        except KeyboardInterrupt:
            _offered(_box(tmp_path / f"box-{lives}", copy), copy)
        _refresh(copy, bag)  # whoever comes next finishes it
        _offered(_box(tmp_path / f"box-{lives}", copy), copy)
    assert 2 < lives < 39


@pytest.mark.slow
@pytest.mark.incident("power cut", where="any write of a repository's metadata")
def test_a_cut_while_a_lost_online_key_is_replaced_is_finished_or_undone(repository, bag, tmp_path):
    _publish(repository, bag)
    bag.lost.add(_keyid(bag, "timestamp"))  # so nothing can be good for both roots
    root = bag.root()
    for lives in range(40):
        bag.keep_root(root)
        copy = Repository(Path(shutil.copytree(repository.folder, tmp_path / f"cut-{lives}")))
        try:
            EDITS["new online key"](Repository(copy.folder, write=Watched(lives=lives)), bag)
            break
        except KeyboardInterrupt:
            EDITS["new online key"](copy, bag)
        assert _offered(_box(tmp_path / f"box-{lives}", copy), copy) == [("press", 1)]
    assert 2 < lives < 39


def _box(folder, repository):
    root = (repository.folder / "metadata" / "1.root.json").read_bytes()
    return TrustStore.provision(folder, root)
