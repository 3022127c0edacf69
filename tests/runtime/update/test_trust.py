"""The attacks that TUF lists, each tried on a box's trust with real keys."""

import pytest
from outpost_runtime.errors import FetchError, OutpostError, StoreError, TrustError
from outpost_runtime.update.offer import Offer
from outpost_runtime.update.trust import (
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
)
from outpost_runtime.update.trust_store import TrustStore

from tests.support.publisher import DAY, NOW, Publisher, new_signers

YEAR_2100 = 4_102_444_800


@pytest.fixture
def publisher():
    return Publisher()


@pytest.fixture
def trust(publisher, tmp_path):
    return TrustStore.provision(tmp_path / "trust", publisher.root_bytes)


def _offer(release=1, *, name="press", **fields):
    return Offer(
        name=name, version="1", release=release, target="cpu-int8", bundle="a" * 64, **fields
    )


def _releases(offers):
    return [(signed.offer.name, signed.offer.release) for signed in offers]


def _refused(trust, source, *, now=NOW, **fields):
    before = trust.offers()
    with pytest.raises(TrustError) as caught:
        trust.refresh(source, now, **fields)
    assert trust.offers() == before
    return caught.value.message


def test_a_published_release_is_offered(publisher, trust):
    signed = publisher.publish(_offer(), b"release")
    refreshed = trust.refresh(publisher.fetcher(), NOW)
    assert refreshed.changed
    assert refreshed.offers == trust.offers() == (signed,)
    assert refreshed.refused == ()


def test_an_idle_source_is_asked_for_two_files_and_a_kilobyte(publisher, trust):
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    source = publisher.fetcher()
    assert not trust.refresh(source, NOW).changed
    assert source.requests == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert source.given <= 1024


def test_only_what_changed_is_fetched_again(publisher, trust):
    publisher.add_family("others")
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    publisher.publish(_offer(2), b"release")
    source = publisher.fetcher()
    trust.refresh(source, NOW)
    assert source.requests[2:] == ["metadata/4.snapshot.json", "metadata/3.family-models.json"]


def test_a_box_without_a_root_says_what_to_do(tmp_path, publisher):
    with pytest.raises(StoreError) as caught:
        TrustStore(tmp_path / "trust").refresh(publisher.fetcher(), NOW)
    assert "Provision" in caught.value.hint


def test_a_repository_of_somebody_else_is_refused(trust):
    stranger = Publisher()
    stranger.publish(_offer(), b"release")
    assert "signed by 0" in _refused(trust, stranger.fetcher())
    stranger.rotate("root")
    assert "2.root.json" in _refused(trust, stranger.fetcher())


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_a_foreign_key_is_refused(publisher, trust, role):
    trust.refresh(publisher.fetcher(), NOW)
    publisher.signers[role] = new_signers(1)
    publisher.sign_targets()
    assert f"{role}.json is signed by 0" in _refused(trust, publisher.fetcher())


def test_a_family_signed_by_a_foreign_key_is_refused_alone(publisher, trust):
    publisher.add_family("others")
    publisher.publish(_offer(), b"release")
    publisher.signers["family-others"] = publisher.signers["family-models"]
    publisher.publish(_offer(name="bee"), b"release", family="others")
    refreshed = trust.refresh(publisher.fetcher(), NOW)
    assert _releases(refreshed.offers) == [("press", 1)]
    assert [refusal.what for refusal in refreshed.refused] == ["others"]


def test_a_refused_family_is_not_fetched_again_and_again(publisher, trust):
    publisher.signers["family-models"] = new_signers(1)
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    source = publisher.fetcher()
    assert trust.refresh(source, NOW).refused
    assert len(source.requests) == 2


def test_roots_are_followed_one_by_one_even_through_expired_ones(publisher, trust):
    publisher.lifetimes["root"] = DAY
    for _ in range(5):
        publisher.rotate("root", "timestamp", "snapshot", "targets")
        publisher.now += 2 * DAY
    publisher.lifetimes["root"] = 365 * DAY
    publisher.rotate("root")
    publisher.publish(_offer(), b"release")
    assert _releases(trust.refresh(publisher.fetcher(), publisher.now).offers) == [("press", 1)]
    assert publisher.fetcher().files["metadata/7.root.json"]


def test_a_root_needs_the_threshold_of_the_root_before(tmp_path):
    publisher = Publisher(root_keys=3, root_threshold=2)
    trust = TrustStore.provision(tmp_path / "trust", publisher.root_bytes)
    publisher.signers["root"] = publisher.signers["root"][:1]
    publisher.rotate("root")
    assert "signed by 1 of the keys" in _refused(trust, publisher.fetcher())


def test_a_root_needs_the_threshold_of_itself(tmp_path):
    publisher = Publisher(root_keys=2, root_threshold=1)
    trust = TrustStore.provision(tmp_path / "trust", publisher.root_bytes)
    publisher.root.roles["root"].threshold = 2
    publisher.signers["root"] = publisher.signers["root"][:1]
    publisher.rotate("timestamp")
    assert "2 must have signed" in _refused(trust, publisher.fetcher())


def test_one_key_under_two_ids_counts_once(tmp_path):
    publisher = Publisher()
    key = publisher.signers["root"][0]
    twin = type(key)(key._private_key, type(key.public_key)("0" * 64, *_parts(key.public_key)))
    publisher.root.add_key(twin.public_key, "root")
    publisher.root.roles["root"].threshold = 2
    publisher.signers["root"] = [key, twin]
    publisher.rotate("timestamp")
    with pytest.raises(TrustError, match="signed by 1 "):
        TrustStore.provision(tmp_path, publisher.files["metadata/2.root.json"])


def _parts(key):
    return key.keytype, key.scheme, key.keyval


def test_a_skipped_root_is_refused(publisher, trust):
    publisher.rotate("timestamp")
    publisher.rotate("timestamp")
    files = publisher.frozen()
    files["metadata/2.root.json"] = files["metadata/3.root.json"]
    assert "version 3" in _refused(trust, publisher.fetcher(files))


def test_a_played_back_timestamp_is_refused(publisher, trust):
    old = publisher.frozen()
    publisher.refresh()
    trust.refresh(publisher.fetcher(), NOW)
    assert "timestamp.json is version 1" in _refused(trust, publisher.fetcher(old))


@pytest.mark.incident("mixed metadata", where="an older snapshot")
def test_an_older_snapshot_under_a_newer_timestamp_is_refused(publisher, trust):
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    publisher.snapshot.version -= 2
    publisher.sign_snapshot()
    assert "snapshot.json is version 1" in _refused(trust, publisher.fetcher())


def test_an_older_family_under_a_newer_snapshot_is_refused(publisher, trust):
    publisher.publish(_offer(), b"release")
    publisher.publish(_offer(2), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    publisher.families["models"].version -= 2
    publisher.sign_family("models")
    assert "family-models.json is version 2" in _refused(trust, publisher.fetcher())


def test_a_family_that_vanished_from_the_snapshot_is_refused(publisher, trust):
    trust.refresh(publisher.fetcher(), NOW)
    publisher.withdraw_family("models")
    del publisher.snapshot.meta["family-models.json"]
    publisher.sign_targets()
    assert "family-models.json is gone" in _refused(trust, publisher.fetcher())


def test_a_withdrawn_family_offers_nothing(publisher, trust):
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    publisher.withdraw_family("models")
    assert trust.refresh(publisher.fetcher(), NOW).offers == ()


def test_two_contents_of_one_version_are_refused(publisher, trust):
    trust.refresh(publisher.fetcher(), NOW)
    publisher.families["models"].version -= 1
    publisher.publish(_offer(), b"release")
    assert "version 1 of family-models.json" in _refused(trust, publisher.fetcher())


def test_files_of_two_publications_are_refused(publisher, trust):
    old = publisher.frozen()
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    publisher.publish(_offer(2), b"release")
    new = publisher.frozen()
    for name, older in {"3.snapshot": "1.snapshot", "3.family-models": "1.family-models"}.items():
        mixed = {**new, f"metadata/{name}.json": old[f"metadata/{older}.json"]}
        assert "is not the file" in _refused(trust, publisher.fetcher(mixed))
    assert _releases(trust.refresh(publisher.fetcher(), NOW).offers) == [("press", 1), ("press", 2)]


def test_a_frozen_source_is_refused_when_its_timestamp_expires(publisher, trust):
    publisher.publish(_offer(), b"release")
    trust.refresh(publisher.fetcher(), NOW)
    late = NOW + 8 * DAY
    assert "timestamp.json expired" in _refused(trust, publisher.fetcher(), now=late)
    assert _releases(trust.offers()) == [("press", 1)]  # nothing that is here is taken away


@pytest.mark.parametrize("role", ["root", "snapshot", "targets"])
def test_expired_metadata_installs_nothing_new(publisher, trust, role):
    publisher.lifetimes[role] = 3 * DAY
    publisher.rotate("targets")
    assert f"{role}.json expired" in _refused(trust, publisher.fetcher(), now=NOW + 4 * DAY)


def test_an_expired_family_costs_the_others_nothing(publisher, trust):
    publisher.lifetimes["family-models"] = 3 * DAY
    publisher.publish(_offer(), b"release")
    publisher.add_family("others")
    publisher.publish(_offer(name="bee"), b"release", family="others")
    refreshed = trust.refresh(publisher.fetcher(), NOW + 4 * DAY)
    assert _releases(refreshed.offers) == [("bee", 1)]
    assert "expired" in refreshed.refused[0].reason.message


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("2.root.json", MAX_ROOT_BYTES),
        ("timestamp.json", MAX_TIMESTAMP_BYTES),
        ("1.snapshot.json", MAX_SNAPSHOT_BYTES),
        ("1.targets.json", MAX_TARGETS_BYTES),
        ("1.family-models.json", MAX_TARGETS_BYTES),
    ],
)
@pytest.mark.incident("endless data", where="metadata")
def test_endless_data_ends(publisher, trust, path, limit):
    source = publisher.fetcher(endless={f"metadata/{path}"})
    with pytest.raises(FetchError):
        trust.refresh(source, NOW)
    assert source.given <= limit + (1 << 20)


def test_a_file_that_is_named_too_large_is_not_asked_for(publisher, trust):
    publisher.snapshot.meta["targets.json"].length = MAX_TARGETS_BYTES + 1
    publisher.sign_snapshot()
    source = publisher.fetcher()
    with pytest.raises(TrustError, match="are allowed"):
        trust.refresh(source, NOW)
    assert "metadata/1.targets.json" not in source.requests


def test_a_family_that_is_named_too_large_is_refused_alone(publisher, trust):
    publisher.add_family("others")
    publisher.publish(_offer(name="bee"), b"release", family="others")
    publisher.snapshot.meta["family-models.json"].length = MAX_TARGETS_BYTES + 1
    publisher.sign_snapshot()
    refreshed = trust.refresh(publisher.fetcher(), NOW)
    assert _releases(refreshed.offers) == [("bee", 1)]


@pytest.mark.parametrize("path", ["timestamp.json", "1.snapshot.json", "1.family-models.json"])
def test_a_source_without_a_file_that_is_named_failed(publisher, trust, path):
    files = publisher.frozen()
    del files[f"metadata/{path}"]
    with pytest.raises(FetchError, match=path):
        trust.refresh(publisher.fetcher(files), NOW)


@pytest.mark.incident("stolen online keys", where="versions and time that ran ahead")
def test_stolen_online_keys_that_ran_ahead_are_overcome_by_a_new_root(publisher, trust):
    publisher.publish(_offer(), b"release")
    genuine, thief = publisher.frozen(), publisher
    for timestamp in thief.timestamps.values():
        timestamp.version = 10**9
    thief.snapshot.version, thief.now = 10**9, NOW + 600 * DAY
    thief.sign_snapshot()
    with pytest.raises(TrustError, match=r"targets.json expired"):  # the bound ran ahead, too
        trust.refresh(thief.fetcher(), NOW)
    with pytest.raises(TrustError, match="has seen version"):
        trust.refresh(publisher.fetcher(genuine), NOW)
    for timestamp in publisher.timestamps.values():
        timestamp.version = 10
    publisher.snapshot.version, publisher.now = 10, NOW + DAY
    publisher.rotate("timestamp", "snapshot")
    assert _releases(trust.refresh(publisher.fetcher(), NOW + DAY).offers) == [("press", 1)]


def test_a_new_online_key_beside_the_old_one_forgets_nothing(publisher, trust):
    publisher.refresh()
    trust.refresh(publisher.fetcher(), NOW)
    old = publisher.frozen()
    publisher.root.add_key(new_signers(1)[0].public_key, "timestamp")
    publisher.rotate("root")
    trust.refresh(publisher.fetcher(), NOW)
    old["metadata/2.root.json"] = publisher.files["metadata/2.root.json"]
    assert "has seen version" in _refused(trust, publisher.fetcher(old))


class TestClocks:
    @pytest.mark.incident("a clock of 1970", where="metadata that has expired")
    def test_a_clock_of_1970_is_read_as_the_newest_signed_time(self, publisher, trust):
        trust.refresh(publisher.fetcher(), NOW)
        assert trust.time(0) == NOW
        publisher.lifetimes["targets"] = DAY
        publisher.sign_targets()
        publisher.now += 2 * DAY
        publisher.refresh()
        assert "targets.json expired" in _refused(trust, publisher.fetcher(), now=0)

    def test_a_new_box_with_a_clock_of_1970_installs(self, publisher, trust):
        publisher.publish(_offer(), b"release")
        assert trust.refresh(publisher.fetcher(), 0).offers

    def test_a_clock_of_2100_spoils_nothing(self, publisher, trust):
        publisher.publish(_offer(), b"release")
        message = _refused(trust, publisher.fetcher(), now=YEAR_2100)
        assert "expired" in message
        assert trust.time(NOW) == NOW
        assert trust.refresh(publisher.fetcher(), NOW).offers
        assert trust.time(0) == NOW

    def test_the_bound_never_falls(self, publisher, trust):
        publisher.now = NOW + 5 * DAY
        publisher.refresh()
        trust.refresh(publisher.fetcher(), NOW)
        publisher.now = NOW  # the publisher's clock went back
        publisher.refresh()
        trust.refresh(publisher.fetcher(), NOW)
        assert trust.time(0) == NOW + 5 * DAY

    def test_a_timestamp_is_evidence_of_time_even_when_it_has_expired(self, publisher, trust):
        publisher.now += 30 * DAY
        publisher.refresh()
        _refused(trust, publisher.fetcher(), now=NOW + 60 * DAY)
        assert trust.time(0) == NOW + 30 * DAY

    def test_a_timestamp_without_a_time_is_refused(self, publisher, trust):
        publisher.lifetimes["timestamp"] = 0
        publisher.refresh()
        assert "when it was published" in _refused(trust, publisher.fetcher())


class TestSticks:
    def test_a_stick_lives_longer_than_the_network(self, publisher, trust):
        publisher.publish(_offer(), b"release")
        late = NOW + 100 * DAY
        _refused(trust, publisher.fetcher(), now=late)
        stick = publisher.fetcher()
        assert trust.refresh(stick, late, from_stick=True).offers
        assert stick.requests[:2] == ["metadata/2.root.json", "metadata/stick.json"]
        late = NOW + 200 * DAY
        assert "stick.json expired" in _refused(trust, stick, now=late, from_stick=True)

    def test_a_network_may_not_serve_a_sticks_timestamp(self, publisher, trust):
        files = publisher.frozen()
        files["metadata/timestamp.json"] = files["metadata/stick.json"]
        assert "another medium" in _refused(trust, publisher.fetcher(files))

    def test_a_stick_may_not_carry_a_networks_timestamp(self, publisher, trust):
        files = publisher.frozen()
        files["metadata/stick.json"] = files["metadata/timestamp.json"]
        assert "another medium" in _refused(trust, publisher.fetcher(files), from_stick=True)

    def test_a_genuine_but_older_stick_is_refused(self, publisher, trust):
        old = publisher.frozen()
        publisher.publish(_offer(), b"release")
        trust.refresh(publisher.fetcher(), NOW)
        message = _refused(trust, publisher.fetcher(old), from_stick=True)
        assert "snapshot.json is version 1; this box has seen version 2" in message

    def test_an_older_stick_after_a_newer_stick_is_refused(self, publisher, trust):
        old = publisher.frozen()
        publisher.refresh()
        trust.refresh(publisher.fetcher(), NOW, from_stick=True)
        message = _refused(trust, publisher.fetcher(old), from_stick=True)
        assert "stick.json is version 1" in message

    def test_network_and_stick_take_turns(self, publisher, trust):
        found = []
        for release in range(1, 7):
            publisher.publish(_offer(release), b"release")
            from_stick = release % 2 == 0
            trust.refresh(publisher.fetcher(), NOW, from_stick=from_stick)
            found.append(len(trust.offers()))
        assert found == [1, 2, 3, 4, 5, 6]

    def test_a_stick_of_the_same_publication_is_no_fault(self, publisher, trust):
        publisher.publish(_offer(), b"release")
        stick = publisher.frozen()
        for _ in range(3):
            publisher.refresh()
            trust.refresh(publisher.fetcher(), NOW)
        assert not trust.refresh(publisher.fetcher(stick), NOW, from_stick=True).changed

    def test_a_source_behind_a_stick_is_refused_until_it_has_caught_up(self, publisher, trust):
        mirror = publisher.frozen()
        trust.refresh(publisher.fetcher(mirror), NOW)
        publisher.publish(_offer(), b"release")
        trust.refresh(publisher.fetcher(), NOW, from_stick=True)
        assert "out of date" in str(_caught(trust, publisher.fetcher(mirror)))
        assert trust.refresh(publisher.fetcher(), NOW).offers


def _caught(trust, source):
    with pytest.raises(OutpostError) as caught:
        trust.refresh(source, NOW)
    return caught.value
