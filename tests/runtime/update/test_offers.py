"""What a box may choose from, what it refuses alone, and garbage in every document."""

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_runtime.errors import OutpostError, TrustError
from outpost_runtime.update.metadata import Medium
from outpost_runtime.update.offer import Offer, encode_offer, release_path
from outpost_runtime.update.offers import Accepted, choice
from outpost_runtime.update.release import MAX_RELEASE_BYTES
from outpost_runtime.update.trust import next_root, read_root, read_timestamp
from outpost_runtime.update.trust_store import TrustStore
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical

from tests.support.publisher import NOW, Publisher, TargetFile, Targets

HERE = Accepted(family="models", release=7)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["version", "sha256"]), inner)
    ),
    max_leaves=8,
)


def _offer(release=1, *, name="press", **fields):
    return Offer(
        name=name, version="1", release=release, target="cpu-int8", bundle="a" * 64, **fields
    )


def _targets(*offers, family="models"):
    targets = Targets()
    for offer in offers:
        path = release_path(family, offer)
        target = TargetFile.from_data(path, b"release", ["sha256"])
        target.unrecognized_fields["custom"] = encode_offer(offer)
        targets.targets[path] = target
    return targets


def _found(chosen):
    return [(one.family, one.offer.name, one.offer.release) for one in chosen.offers]


def test_older_releases_than_accepted_are_left_out_without_a_word():
    chosen = choice({"models": _targets(_offer(6), _offer(7), _offer(8))}, {"press": HERE})
    assert _found(chosen) == [("models", "press", 7), ("models", "press", 8)]
    assert chosen.refused == ()


def test_where_only_older_releases_are_offered_of_a_name_it_is_said():
    chosen = choice({"models": _targets(_offer(3), _offer(1, name="bee"))}, {"press": HERE})
    assert _found(chosen) == [("models", "bee", 1)]
    (refused,) = chosen.refused
    assert refused.what == "press"
    assert "release 3 of 'press' is older than release 7" in refused.reason.message.lower()


def test_a_name_belongs_to_the_family_that_the_box_had_it_from():
    signed = {"early": _targets(_offer(9), family="early"), "models": _targets(_offer(8))}
    chosen = choice(signed, {"press": HERE})
    assert _found(chosen) == [("models", "press", 8)]
    assert "belongs to the family 'models'" in chosen.refused[0].reason.message


def test_a_name_that_no_box_has_had_belongs_to_the_first_family():
    signed = {"early": _targets(_offer(2), family="early"), "models": _targets(_offer(8))}
    assert _found(choice(signed, {})) == [("early", "press", 2)]


def test_an_expired_family_keeps_its_names():
    early, models = _targets(_offer(2), family="early"), _targets(_offer(8))
    early.expires = datetime.fromtimestamp(NOW, UTC)
    models.expires = datetime.fromtimestamp(NOW + 9, UTC)
    chosen = choice({"early": early, "models": models}, {}, NOW)
    assert _found(chosen) == []
    assert [one.what for one in chosen.refused] == ["early", "models/press-8-cpu-int8.json"]


def test_a_name_is_free_when_its_family_is_withdrawn_and_its_counter_begins_anew():
    chosen = choice({"heirs": _targets(_offer(1), family="heirs")}, {"press": HERE})
    assert _found(chosen) == [("heirs", "press", 1)]


@pytest.mark.parametrize(
    "change",
    [
        lambda target: target.unrecognized_fields.clear(),
        lambda target: target.unrecognized_fields["custom"].update(surprise=1),
        lambda target: target.unrecognized_fields["custom"].update(name="../etc"),
        lambda target: target.unrecognized_fields["custom"].update(release=2),
        lambda target: target.unrecognized_fields["custom"].update(minimum_runtime="9" * 5000),
        lambda target: target.unrecognized_fields["custom"].update(minimum_runtime="1.x"),
        lambda target: target.hashes.update(sha256="../" * 21 + "x"),
        lambda target: target.hashes.pop("sha256"),
        lambda target: setattr(target, "length", MAX_RELEASE_BYTES + 1),
        lambda target: setattr(target, "length", True),
    ],
)
def test_a_bad_offer_is_refused_alone(change):
    targets = _targets(_offer(), _offer(name="bee"))
    change(targets.targets["models/bee-1-cpu-int8.json"])
    chosen = choice({"models": targets}, {})
    assert _found(chosen) == [("models", "press", 1)]
    assert [one.what for one in chosen.refused] == ["models/bee-1-cpu-int8.json"]


def test_an_offer_of_another_familys_folder_is_refused():
    chosen = choice({"models": _targets(_offer(), family="others")}, {})
    assert _found(chosen) == []
    assert len(chosen.refused) == 1


@settings(max_examples=50)
@given(custom=JSON, length=JSON, digest=JSON)
def test_whatever_a_family_signs_as_an_offer_stops_nothing(custom, length, digest):
    targets = _targets(_offer(), _offer(name="bee"))
    target = targets.targets["models/bee-1-cpu-int8.json"]
    target.unrecognized_fields["custom"] = custom
    target.length, target.hashes["sha256"] = length, str(digest)
    assert _found(choice({"models": targets}, {})) == [("models", "press", 1)]


PUBLISHER = Publisher()
PUBLISHER.publish(_offer(), b"release")
PUBLISHER.root.version += 1
PUBLISHER._write_root()
ROOT = read_root(PUBLISHER.root_bytes)
ORDER = {
    "root": "metadata/2.root.json",
    "family-models": "metadata/2.family-models.json",
    "targets": "metadata/1.targets.json",
    "snapshot": "metadata/2.snapshot.json",
    "timestamp": "metadata/timestamp.json",
}
BY_NAME = {f"metadata/{role}.json": path for role, path in ORDER.items()}


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_refused_as_any_document(data):
    for read in (
        read_root,
        lambda data: next_root(ROOT, data),
        lambda data: read_timestamp(ROOT, data, Medium.NETWORK),
    ):
        with pytest.raises(TrustError):
            read(data)


def test_deep_nesting_is_refused():
    for data in (b"[" * 100_000, b'{"signed":' * 10_000 + b"1" + b"}" * 10_000):
        with pytest.raises(TrustError):
            read_root(data)


@settings(max_examples=60)
@given(name=st.sampled_from(["root", "timestamp"]), place=st.data())
def test_one_changed_byte_changes_nothing_that_is_believed(name, place):
    path = "metadata/1.root.json" if name == "root" else "metadata/timestamp.json"
    data = bytearray(PUBLISHER.files[path])
    data[place.draw(st.integers(0, len(data) - 1))] ^= place.draw(st.integers(1, 255))
    genuine = PUBLISHER.files[path]
    try:
        if name == "root":
            assert read_root(bytes(data)).to_dict() == read_root(genuine).to_dict()
        else:
            found = read_timestamp(ROOT, bytes(data), Medium.NETWORK)
            assert found == read_timestamp(ROOT, genuine, Medium.NETWORK)
    except TrustError:
        pass


def _paths(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*path, key))


@settings(max_examples=200)
@given(draw=st.data(), role=st.sampled_from([*ORDER]))
def test_whatever_genuine_keys_sign_ends_in_offers_or_one_of_our_errors(
    tmp_path_factory, draw, role
):
    folder = tmp_path_factory.mktemp("trust")
    trust = TrustStore.provision(folder, PUBLISHER.root_bytes, Path.write_bytes)
    source = PUBLISHER.fetcher(_with_one_strange_value(role, draw))
    try:
        trust.refresh(source, NOW)
    except OutpostError:
        return
    trust.offers()


def _with_one_strange_value(role, draw):
    files = PUBLISHER.frozen()
    for name, path in ORDER.items():
        document = json.loads(files[path])["signed"]
        if name == role:
            *way, last = draw.draw(st.sampled_from([*_paths(document)][1:]))
            place = document
            for key in way:
                place = place[key]
            place[last] = draw.draw(JSON.filter(_can_be_signed))
        else:
            _name_again(document.get("meta", {}), files)
        files[path] = _sign(name, document)
    return files


def _name_again(meta, files):
    for name, described in meta.items():
        data = files[BY_NAME[f"metadata/{name}"]]
        described |= {"length": len(data), "hashes": {"sha256": sha256(data).hexdigest()}}


def _can_be_signed(value):
    try:
        encode_canonical(value).encode()
    except (FormatError, UnicodeEncodeError):
        return False
    return True


def _sign(role, document):
    payload = encode_canonical(document).encode()
    signatures = [signer.sign(payload).to_dict() for signer in PUBLISHER.signers[role]]
    return json.dumps({"signatures": signatures, "signed": document}).encode()
