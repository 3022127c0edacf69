"""From the publisher's passphrase to a box that decrypts: real keys, real files."""

import dataclasses
import json
import shutil
from functools import partial

import pytest
from outpost_export.errors import PublishError
from outpost_export.publishing.content_key_files import (
    Passphrases,
    content_keys,
    current_content_key,
    group_keys,
)
from outpost_export.publishing.grants import Granting, box_of
from outpost_export.publishing.roster import Roster
from outpost_runtime.errors import StoreError, TrustError
from outpost_runtime.update.content_keys import MAX_GROUPS
from outpost_runtime.update.encryption import seal, unseal

from tests.support.boxes import Box
from tests.support.power import cut_at, cuts_of

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of keys that live as long as a test
CHEAP = 1 << 10


def _granting(folder, passphrase=PASSPHRASE):
    repository, keys = folder / "repository", folder / "publisher"
    repository.mkdir(exist_ok=True, parents=True)
    passphrases = Passphrases(lambda _: passphrase, lambda _: passphrase)
    return Granting(
        repository=repository,
        contents=content_keys(keys, passphrases, cost=CHEAP),
        groups=group_keys(keys, passphrases, cost=CHEAP),
        roster=Roster(keys),
    )


@pytest.fixture
def granting(tmp_path):
    return _granting(tmp_path)


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path / "box")


def _key(granting, family="press"):
    return current_content_key(granting.contents, family)


def test_the_list_is_written_for_the_publisher_only_and_read_without_an_alarm(
    granting, box, tmp_path, caplog
):
    granting.grant(box_of(box.identity), ["press"])
    granting.grant(box_of(box.identity), ["vision"])
    assert [found.families for found in granting.roster.all()] == [("press", "vision")]
    (path,) = (tmp_path / "publisher" / "recipients").glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert caplog.records == []


def test_a_granted_box_decrypts_what_was_encrypted_before_and_nothing_is_encrypted_again(
    granting, box
):
    key = _key(granting)
    block = seal(b"weights", key.secret)
    with pytest.raises(TrustError, match="not granted"):
        box.obtain(key.key, granting.repository)
    granting.grant(box_of(box.identity), ["press"])
    assert unseal(block, box.obtain(key.key, granting.repository)) == b"weights"


def test_a_box_gets_the_families_that_it_was_granted_and_no_others(granting, box):
    press, lathe = _key(granting, "press"), _key(granting, "lathe")
    assert press.secret != lathe.secret
    granting.grant(box_of(box.identity), ["press"])
    assert box.obtain(press.key, granting.repository) == press.secret
    with pytest.raises(TrustError):
        box.obtain(lathe.key, granting.repository)


def test_another_box_has_nothing_from_a_grant(granting, box, tmp_path):
    granting.grant(box_of(box.identity), ["press"])
    with pytest.raises(TrustError):
        Box(tmp_path / "other").obtain(_key(granting).key, granting.repository)


def test_granting_again_keeps_what_was_granted_before(granting, box):
    granting.grant(box_of(box.identity), ["press"])
    assert granting.grant(box_of(box.identity), ["lathe", "press"]).families == ("press", "lathe")


def test_a_group_is_granted_once_for_all_its_boxes(granting, tmp_path):
    boxes = [Box(tmp_path / name) for name in ("a", "b")]
    group = granting.join("hall-two", [box_of(box.identity) for box in boxes])
    granting.grant(group, ["press"])
    key = _key(granting)
    assert len(list((granting.repository / "keys" / key.key).iterdir())) == 1
    assert {box.obtain(key.key, granting.repository) for box in boxes} == {key.secret}


def test_a_box_can_join_a_group_after_it_was_granted(granting, box):
    granting.grant(granting.join("hall-two", []), ["press"])
    granting.join("hall-two", [box_of(box.identity)])
    assert box.obtain(_key(granting).key, granting.repository) == _key(granting).secret


def test_a_box_in_several_groups_gets_what_any_of_them_has(granting, box):
    for name in ("first", "second"):
        granting.join(name, [box_of(box.identity)])
    granting.grant(granting.roster.group("second"), ["press"])
    assert box.obtain(_key(granting).key, granting.repository) == _key(granting).secret


def test_joining_twice_changes_nothing(granting, box):
    for _ in range(2):
        granting.join("first", [box_of(box.identity)])
    assert granting.roster.find(box_of(box.identity).id).groups == ("first",)


def test_a_box_cannot_be_in_more_groups_than_it_looks_through(granting, box):
    for number in range(MAX_GROUPS):
        granting.join(f"group-{number}", [box_of(box.identity)])
    with pytest.raises(PublishError, match="groups already"):
        granting.join("one-more", [box_of(box.identity)])


def test_a_new_content_key_reaches_everybody_on_the_list_and_the_earlier_one_stays(granting, box):
    before = _key(granting)
    granting.grant(box_of(box.identity), ["press"])
    after = granting.renew("press")
    assert (before.number, after.number) == (1, 2)
    assert _key(granting) == after
    for key in (before, after):
        assert box.obtain(key.key, granting.repository) == key.secret


def test_a_revoked_box_does_not_get_the_next_content_key(granting, box):
    granting.grant(box_of(box.identity), ["press"])
    box.obtain(_key(granting).key, granting.repository)
    granting.revoke(box_of(box.identity), ["press"])
    after = granting.renew("press")
    with pytest.raises(TrustError):
        box.obtain(after.key, granting.repository)


def test_a_box_that_was_revoked_before_it_fetched_finds_nothing(granting, box):
    granting.grant(box_of(box.identity), ["press"])
    granting.revoke(box_of(box.identity), ["press"])
    with pytest.raises(TrustError):
        box.obtain(_key(granting).key, granting.repository)


def _hall_of(granting, *boxes):
    group = granting.join("hall-two", [box_of(box.identity) for box in boxes])
    granting.grant(group, ["press"])
    return _key(granting)


@pytest.mark.incident("a box that is stolen", where="one of a group")
def test_a_box_that_is_out_of_a_renewed_group_gets_no_content_key_that_comes(granting, tmp_path):
    stolen, kept = (Box(tmp_path / name) for name in ("stolen", "kept"))
    granting.join("first", [box_of(stolen.identity)])
    key = _hall_of(granting, stolen, kept)
    granting.join("last", [box_of(stolen.identity)])
    granting.grant(granting.roster.group("last"), ["vision"])
    tape = shutil.copytree(granting.repository, tmp_path / "tape")
    made = granting.renew_group("hall-two", [box_of(stolen.identity)])
    assert granting.roster.group("hall-two") == made
    new = granting.renew("press")
    shutil.copytree(granting.repository, tape, dirs_exist_ok=True)  # with all that the thief kept
    for repository in (granting.repository, tape):
        with pytest.raises(TrustError):
            stolen.obtain(new.key, repository)
    vision = _key(granting, "vision")
    assert stolen.obtain(vision.key, granting.repository) == vision.secret
    for secret in (key, new):
        assert kept.obtain(secret.key, granting.repository) == secret.secret


@pytest.mark.incident("power cut", where="between any two writes of a group's new key")
def test_the_power_may_be_cut_while_a_group_is_renewed(tmp_path, box):
    stolen = Box(tmp_path / "stolen")

    def renew(granting):
        return granting.renew_group("hall-two", [box_of(stolen.identity)])

    whole = _granting(tmp_path / "whole")
    _hall_of(whole, stolen, box)
    copy = partial(shutil.copytree, tmp_path / "whole")
    total = cuts_of(lambda: renew(_granting(copy(tmp_path / "counted"))))
    for number in range(0, total, 3):
        granting = _granting(copy(tmp_path / str(number)))
        assert cut_at(number, lambda g=granting: renew(g))
        granting = _granting(tmp_path / str(number))
        renew(granting)
        key = granting.renew("press")
        assert box.obtain(key.key, granting.repository) == key.secret
        with pytest.raises(TrustError):
            stolen.obtain(key.key, granting.repository)


def test_a_group_that_is_not_there_or_a_stranger_is_told(granting, box, tmp_path):
    with pytest.raises(PublishError, match="no group 'hall-two'"):
        granting.renew_group("hall-two")
    _hall_of(granting, box)
    stranger = Box(tmp_path / "stranger")
    with pytest.raises(PublishError, match="is not in the group"):
        granting.renew_group("hall-two", [box_of(stranger.identity)])


def test_who_was_granted_nothing_cannot_be_revoked(granting, box):
    with pytest.raises(PublishError, match="granted nothing"):
        granting.revoke(box_of(box.identity), ["press"])


def test_everything_that_was_granted_can_be_written_into_a_new_repository(granting, box, tmp_path):
    granting.grant(granting.join("hall-two", [box_of(box.identity)]), ["press"])
    (tmp_path / "new").mkdir()
    moved = dataclasses.replace(granting, repository=tmp_path / "new")
    moved.write_again(moved.roster.all())
    assert box.obtain(_key(moved).key, moved.repository) == _key(moved).secret


def test_a_wrapped_key_that_somebody_damaged_is_healed_by_granting_again(granting, box):
    granting.grant(box_of(box.identity), ["press"])
    (path,) = (granting.repository / "keys" / _key(granting).key).iterdir()
    path.write_bytes(b"damaged")
    granting.grant(box_of(box.identity), ["press"])
    assert box.obtain(_key(granting).key, granting.repository) == _key(granting).secret


def test_who_can_write_to_the_repository_gets_no_new_content_key(granting, box, tmp_path):
    granting.grant(box_of(box.identity), ["press"])
    thief = Box(tmp_path / "thief")
    folder = granting.repository / "keys" / _key(granting).key
    (folder / f"{box_of(thief.identity).id}.json").write_bytes(next(folder.iterdir()).read_bytes())
    after = granting.renew("press")
    with pytest.raises(TrustError):
        thief.obtain(after.key, granting.repository)


def test_the_power_may_be_cut_between_any_two_writes_of_a_grant(tmp_path, box):
    granting = _granting(tmp_path / "whole")
    total = cuts_of(lambda: granting.grant(box_of(box.identity), ["press"]))
    assert total > 10
    for number in range(total):
        granting = _granting(tmp_path / str(number))
        assert cut_at(number, lambda g=granting: g.grant(box_of(box.identity), ["press"]))
        granting.grant(box_of(box.identity), ["press"])
        key = _key(granting)
        assert box.obtain(key.key, granting.repository) == key.secret
        assert key.number == 1


def test_the_power_may_be_cut_between_any_two_writes_of_a_new_content_key(tmp_path, box):
    whole = _granting(tmp_path / "whole")
    whole.grant(box_of(box.identity), ["press"])
    total = cuts_of(lambda: whole.renew("press"))
    for number in range(total):
        granting = _granting(tmp_path / str(number))
        granting.grant(box_of(box.identity), ["press"])
        assert cut_at(number, lambda g=granting: g.renew("press"))
        key = _key(granting)  # whichever it is, everybody has it
        assert box.obtain(key.key, granting.repository) == key.secret


def test_key_files_are_the_owners_alone_and_show_no_secret(granting, box, tmp_path, capsys):
    granting.grant(granting.join("hall-two", [box_of(box.identity)]), ["press"])
    key = _key(granting)
    files = [
        path
        for path in (tmp_path / "publisher").rglob("*.json")
        if path.parent.name != "recipients"
    ]
    assert len(files) == 2
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert key.secret.hex() not in path.read_text()
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret)[2:-1] not in repr(key)
    assert capsys.readouterr() == ("", "")


def test_another_passphrase_opens_nothing_and_adds_nothing(granting, box, tmp_path):
    _key(granting)
    other = _granting(tmp_path, "another passphrase")
    for act in (
        lambda: _key(other),
        lambda: _key(other, "lathe"),
        lambda: other.renew("press"),
        lambda: other.grant(box_of(box.identity), ["press"]),
    ):
        with pytest.raises(PublishError, match="does not open"):
            act()
    assert granting.contents.names() == ["press"]


def test_a_short_passphrase_is_refused(tmp_path):
    with pytest.raises(PublishError, match="too short"):
        _key(_granting(tmp_path, "1234567"))


@pytest.mark.parametrize("name", ["", "../press", "Press", "a/b", "-", "x" * 64])
def test_a_family_whose_name_is_no_file_name_is_refused(granting, name):
    with pytest.raises(PublishError):
        _key(granting, name)


def test_one_familys_key_file_under_anothers_name_is_refused(granting, tmp_path):
    _key(granting, "press")
    folder = tmp_path / "publisher" / "content"
    (folder / "press-0001.json").rename(folder / "lathe-0001.json")
    with pytest.raises(PublishError, match="another key's file"):
        _key(granting, "lathe")


def test_a_damaged_list_of_recipients_is_named(granting, box, tmp_path):
    granting.grant(box_of(box.identity), ["press"])
    (path,) = (tmp_path / "publisher" / "recipients").glob("*.json")
    document = json.loads(path.read_bytes())
    for change in ({"public_key": "00" * 32}, {"families": "press"}, {"more": 1}):
        path.write_text(json.dumps(document | change))
        with pytest.raises(PublishError):
            granting.roster.all()
    path.write_bytes(b"\xff")
    with pytest.raises(PublishError):
        granting.grant(box_of(box.identity), ["press"])


def test_a_repository_that_cannot_be_written_is_named(granting, box):
    (granting.repository / "keys").write_text("a file where the folder should be")
    with pytest.raises(PublishError, match="cannot be written"):
        granting.grant(box_of(box.identity), ["press"])


def test_a_keys_folder_that_cannot_be_written_is_named(granting, box, tmp_path):
    (tmp_path / "publisher").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="publisher"):
        granting.grant(box_of(box.identity), ["press"])
