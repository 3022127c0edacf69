"""What lies on a box's disk: cut at any write, damaged, full; and how much of it there is."""

import errno
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.bundle import write_durably
from outpost_runtime.errors import StoreError, TrustError
from outpost_runtime.update.offer import Offer, Rollout, encode_offer, release_path
from outpost_runtime.update.release import Block, Release, ReleasedFile, encode_release
from outpost_runtime.update.seen import Seen
from outpost_runtime.update.trust import MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES
from outpost_runtime.update.trust_files import TrustFiles
from outpost_runtime.update.trust_store import TrustStore

from tests.support.publisher import DAY, NOW, Publisher, TargetFile

_NUMBERS = st.integers(-9, 9) | st.floats()
_RECORD = st.dictionaries(st.sampled_from(["time", "snapshot", "keys", "press"]), _NUMBERS)
JSON = _NUMBERS | _RECORD | st.fixed_dictionaries({"record": _RECORD, "sha256": st.text()})


class Killed(BaseException):
    """The power went."""


class KilledWriter:
    """Writes durably until the power goes, in the middle of one write or right after it.

    Args:
        lives: Writes that succeed.
        after: Whether the next one is complete, too, before the power goes.
    """

    def __init__(self, lives, *, after):
        self.lives = lives
        self.after = after

    def __call__(self, path, data):
        if self.lives == 0:
            if self.after:
                write_durably(path, data)
            else:
                path.with_name(f".{path.name}.new").write_bytes(data[: len(data) // 2])
            raise Killed
        self.lives -= 1
        write_durably(path, data)


class FullDisk:
    """Writes durably until the disk is full."""

    def __init__(self, lives):
        self.lives = lives

    def __call__(self, path, data):
        if self.lives == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lives -= 1
        write_durably(path, data)


@pytest.fixture
def publisher():
    return Publisher()


@pytest.fixture
def folder(publisher, tmp_path):
    TrustStore.provision(tmp_path / "trust", publisher.root_bytes)
    return tmp_path / "trust"


def _release(name="press", version="1"):
    block = Block(id="c" * 64, size=1, stored=50)
    return Release(
        name=name, version=version, target="cpu-int8", bundle="a" * 64, base=None, key="b" * 64,
        memory_bytes=1, files=(ReleasedFile(name="manifest.json", blocks=(block,)),), deltas=(),
    )  # fmt: skip


def _offer(release=1, *, name="press", **fields):
    return Offer(
        name=name, version="1", release=release, target="cpu-int8", bundle="a" * 64, **fields
    )


def _publish(publisher, release=1, **fields):
    return publisher.publish(_offer(release, **fields), encode_release(_release()))


def _state(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_idle_refresh_writes_nothing(publisher, folder):
    _publish(publisher)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix}
    TrustStore(folder, FullDisk(0)).refresh(publisher.fetcher(), NOW + DAY)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix} == before


def test_only_the_files_that_count_are_kept(publisher, folder):
    trust = TrustStore(folder)
    for release in range(1, 6):
        _publish(publisher, release)
        trust.refresh(publisher.fetcher(), NOW, from_stick=release == 3)
    assert {name for name in _state(folder) if name[0].isdigit()} == {
        # the newest generation, and the one before it for who is reading it now
        "6.snapshot.json", "5.snapshot.json", "1.targets.json",
        "6.family-models.json", "5.family-models.json",
    }  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("from_stick", [False, True])
def test_a_cut_at_any_write_leaves_the_old_or_the_new(publisher, folder, after, from_stick):
    old = (_publish(publisher),)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    publisher.add_family("others")
    publisher.rotate("root")
    new = (*old, _publish(publisher, 2))
    cuts = 0
    for lives in range(100):
        try:
            TrustStore(folder, KilledWriter(lives, after=after)).refresh(
                publisher.fetcher(), NOW, from_stick=from_stick
            )
            break
        except Killed:
            cuts += 1
        assert TrustStore(folder).offers() in (old, new)
    assert TrustStore(folder).offers() == new
    assert cuts >= 1
    assert not list(folder.glob(".*.new"))


@pytest.mark.incident("power cut", where="between any two writes of metadata")
def test_every_cut_in_one_refresh_is_survived(publisher, tmp_path):
    first, old = publisher.root_bytes, (_publish(publisher),)
    before = publisher.frozen()
    publisher.add_family("others")
    publisher.rotate("root")
    new = (*old, _publish(publisher, 2))
    for lives in range(7):  # root, clock, snapshot, targets, two families, timestamp
        folder = tmp_path / f"cut-{lives}"
        TrustStore.provision(folder, first).refresh(publisher.fetcher(before), NOW)
        with pytest.raises(Killed):
            TrustStore(folder, KilledWriter(lives, after=lives % 2 == 0)).refresh(
                publisher.fetcher(), NOW
            )
        found = TrustStore(folder).offers()
        assert found == (new if lives == 6 else old)
        if lives >= 2:  # what was seen before the cut is not forgotten
            with pytest.raises(TrustError):
                TrustStore(folder).refresh(publisher.fetcher(before), NOW)
        TrustStore(folder).refresh(publisher.fetcher(), NOW)
        assert TrustStore(folder).offers() == new


def test_a_refresh_goes_on_where_it_was_cut(publisher, folder):
    _publish(publisher)
    with pytest.raises(Killed):  # after clock, snapshot, targets
        TrustStore(folder, KilledWriter(3, after=False)).refresh(publisher.fetcher(), NOW)
    source = publisher.fetcher()
    TrustStore(folder).refresh(source, NOW)
    assert source.requests[2:] == ["metadata/2.family-models.json"]


@pytest.mark.incident("disk full", where="metadata")
def test_a_full_disk_is_told_and_loses_nothing(publisher, folder):
    old = (_publish(publisher),)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    _publish(publisher, 2)
    for lives in range(3):
        with pytest.raises(StoreError, match="No space left"):
            TrustStore(folder, FullDisk(lives)).refresh(publisher.fetcher(), NOW)
        assert TrustStore(folder).offers() == old
    assert len(TrustStore(folder).refresh(publisher.fetcher(), NOW).offers) == 2


DAMAGES = {
    "gone": lambda _data: None,
    "empty": lambda _data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(byte ^ 0x55 for byte in data),
    "grown": lambda data: data + bytes(6_000_000),
    "one digit": lambda data: data[:-9].replace(b"1", b"9") + data[-9:],
}
FILES = ["timestamp.json", "2.snapshot.json", "1.targets.json", "2.family-models.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "clock.json"])
@pytest.mark.incident("a damaged file", where="metadata on the box")
def test_a_damaged_file_is_healed_by_the_next_refresh(publisher, folder, name, damage):
    offers = (_publish(publisher),)
    trust = TrustStore(folder)
    trust.refresh(publisher.fetcher(), NOW)
    right = _state(folder)
    damaged = DAMAGES[damage](right[name])
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged)
    source = publisher.fetcher()
    assert trust.refresh(source, NOW).offers == offers
    assert _state(folder) == right
    assert source.requests[2:] == ([f"metadata/{name}"] if name in FILES[1:] else [])


@pytest.mark.parametrize("name", FILES[1:])
def test_damaged_metadata_is_not_shown_as_offers(publisher, folder, name):
    _publish(publisher)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    (folder / name).write_bytes(b"{}")
    with pytest.raises(TrustError) as caught:
        TrustStore(folder).offers()
    assert caught.value.hint


def test_a_damaged_clock_forgets_no_versions(publisher, folder):
    old = publisher.frozen()
    _publish(publisher)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    (folder / "clock.json").write_bytes(b"\0" * 100)
    with pytest.raises(TrustError, match="has seen version 2"):
        TrustStore(folder).refresh(publisher.fetcher(old), NOW)
    assert TrustStore(folder).time(0) == NOW


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
def test_a_damaged_root_asks_for_provisioning_and_keeps_the_rest(publisher, folder, damage):
    offers = (_publish(publisher),)
    TrustStore(folder).refresh(publisher.fetcher(), NOW)
    damaged = DAMAGES[damage](publisher.root_bytes)
    (folder / "root.json").unlink()
    if damaged is not None:
        (folder / "root.json").write_bytes(damaged)
    for act in (TrustStore(folder).offers, lambda: TrustStore(folder).time(0)):
        with pytest.raises(StoreError, match=r"root\.json"):
            act()
    assert TrustStore.provision(folder, publisher.root_bytes).offers() == offers


def test_a_root_that_did_not_sign_itself_is_not_provisioned(publisher, tmp_path):
    data = publisher.root_bytes.replace(b'"consistent_snapshot":true', b'"consistent_snapshot":1')
    for wrong in (data, b"", b"{}", b"[]", publisher.files["metadata/timestamp.json"]):
        with pytest.raises(TrustError):
            TrustStore.provision(tmp_path / "trust", wrong)
    assert not (tmp_path / "trust").exists()


@given(data=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_lies_in_the_records_is_told_or_healed(tmp_path_factory, data):
    files = TrustFiles(tmp_path_factory.mktemp("trust"))
    for name in ("clock.json", "accepted.json"):
        (files.folder / name).write_bytes(data)
    assert files.seen() == Seen()
    with pytest.raises(StoreError):
        files.accepted()


class TestReleases:
    def test_a_release_is_what_its_offer_names(self, publisher, folder):
        signed, source = _publish(publisher), publisher.fetcher()
        assert TrustStore(folder).release(source, signed) == _release()
        digest = hashlib.sha256(encode_release(_release())).hexdigest()
        assert source.requests == [f"targets/models/{digest}.press-1-cpu-int8.json"]

    def test_other_bytes_are_refused(self, publisher, folder):
        signed = _publish(publisher)
        for other in (encode_release(_release(version="2")), b"short", b""):
            with pytest.raises(TrustError, match="is not the file"):
                TrustStore(folder).release(publisher.fetcher({signed.stored_path: other}), signed)

    def test_a_release_of_another_bundle_is_refused(self, publisher, folder):
        signed = publisher.publish(_offer(), encode_release(_release(name="bee")))
        with pytest.raises(TrustError, match="another bundle than its offer"):
            TrustStore(folder).release(publisher.fetcher(), signed)

    def test_an_older_release_than_accepted_is_refused(self, publisher, folder):
        older, newer = _publish(publisher, 1), _publish(publisher, 2)
        trust = TrustStore(folder)
        trust.accept(newer)
        for refused in (trust.accept, lambda one: trust.release(publisher.fetcher(), one)):
            with pytest.raises(TrustError, match="Release 1 of 'press' is older than release 2"):
                refused(older)
        trust.accept(newer)
        assert trust.refresh(publisher.fetcher(), NOW).offers == (newer,)

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("lives", [0, 1])
    def test_a_cut_while_accepting_leaves_the_old_or_the_new(self, publisher, folder, lives, after):
        releases = [_publish(publisher, release) for release in (1, 2, 3)]
        TrustStore(folder).accept(releases[1])
        with pytest.raises(Killed):
            TrustStore(folder, KilledWriter(lives, after=after)).accept(releases[2])
        with pytest.raises(TrustError):
            TrustStore(folder).accept(releases[0])
        TrustStore(folder).accept(releases[2])

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("name", ["accepted.json", "accepted.copy.json"])
    def test_one_damaged_copy_forgets_nothing(self, publisher, folder, name, damage):
        older, newer = _publish(publisher, 1), _publish(publisher, 2)
        TrustStore(folder).accept(newer)
        data = DAMAGES[damage]((folder / name).read_bytes())
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        with pytest.raises(TrustError, match="older than release 2"):
            TrustStore(folder).accept(older)

    def test_two_damaged_copies_are_told_and_not_taken_for_none(self, publisher, folder):
        signed = _publish(publisher)
        TrustStore(folder).accept(signed)
        for name in ("accepted.json", "accepted.copy.json"):
            (folder / name).write_bytes(b"{")
        with pytest.raises(StoreError, match="damaged, and so is its copy"):
            TrustStore(folder).accept(signed)


class TestSizes:
    def test_ten_thousand_bundles_in_one_family_stay_within_the_limits(self, publisher, folder):
        _fill(publisher, {"models": 10_000})
        publisher.sign_family("models")
        self._check(publisher, folder, family_bytes=4_100_000)

    def test_ten_thousand_bundles_in_a_hundred_families_cost_little(self, publisher, folder):
        names = [f"family-of-line-{number:03}" for number in range(100)]
        for name in names:
            publisher._delegate(name)
        publisher.sign_targets()
        _fill(publisher, dict.fromkeys(names, 100))
        for name in names:
            publisher._write(f"family-{name}", publisher.families[name])
        publisher.sign_snapshot()
        self._check(publisher, folder, family_bytes=42_000)

    def _check(self, publisher, folder, *, family_bytes):
        sizes = {path: len(data) for path, data in publisher.files.items()}
        assert (
            max(n for p, n in sizes.items() if "family" in p) <= family_bytes <= MAX_TARGETS_BYTES
        )
        assert max(n for p, n in sizes.items() if "targets.json" in p) <= 60_000
        assert max(n for p, n in sizes.items() if "snapshot" in p) <= 20_000 <= MAX_SNAPSHOT_BYTES
        assert sizes["metadata/timestamp.json"] <= 600
        trust = TrustStore(folder)
        assert len(trust.refresh(publisher.fetcher(), NOW).offers) == 10_000
        source = publisher.fetcher()
        trust.refresh(source, NOW)
        assert (len(source.requests), source.given <= 1024) == (2, True)


def _fill(publisher, counts):
    # As `publish` does it, but signed once: names, versions and roll-outs of realistic length.
    for family, count in counts.items():
        for number in range(count):
            bundle = hashlib.sha256(f"{family}{number}".encode()).hexdigest()
            offer = Offer(
                name=f"{family[-3:]}-press-{number:05}", version="2026.11.30", target="cpu-int8",
                release=number % 9 + 1, bundle=bundle,
                devices=("terminal-2",), rollout=Rollout(rings=("pilot",), percent=50),
            )  # fmt: skip
            path = release_path(family, offer)
            target = TargetFile.from_data(path, path.encode(), ["sha256"])
            target.unrecognized_fields["custom"] = encode_offer(offer)
            publisher.families[family].targets[path] = target
