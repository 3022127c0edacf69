import argparse

import pytest
from outpost_export.errors import PublishError
from outpost_export.publishing.content_key_files import (
    Passphrases,
    content_keys,
    current_content_key,
)
from outpost_export.publishing.granting_commands import add_commands
from outpost_runtime.errors import TrustError
from outpost_runtime.update.device_identity import encode_identity

from tests.support.boxes import Box
from tests.support.signed_repositories import KeyBag, new_repository

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of keys that live as long as a test


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path / "box")


@pytest.fixture
def families():
    return ("press", "vision")


@pytest.fixture
def run(tmp_path, families):
    bag = KeyBag()
    new_repository(tmp_path / "repository", bag, families=families, root_keys=1)
    (tmp_path / "publisher").mkdir()
    (tmp_path / "publisher" / "root.json").write_bytes(bag.root())
    places = ["--repo", str(tmp_path / "repository"), "--keys", str(tmp_path / "publisher")]

    def run(*arguments):
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers(required=True)
        add_commands(commands, lambda _: PASSPHRASE, lambda _: PASSPHRASE)
        parsed = parser.parse_args([arguments[0], *places, *arguments[1:]])
        return parsed.run(parsed)

    return run


@pytest.fixture
def identity_file(box, tmp_path):
    path = tmp_path / "device.json"
    path.write_bytes(encode_identity(box.identity))
    return path


def test_the_commands_lead_from_an_identity_to_a_box_that_decrypts(
    run, box, identity_file, tmp_path, capsys
):
    assert run("group", "hall-two", str(identity_file)) == 0
    assert run("grant", "hall-two", "--family", "press") == 0
    assert run("grant", str(identity_file), "--family", "press") == 0
    assert run("grant") == 0
    assert run("new-content-key", "press") == 0
    assert run("revoke", str(identity_file)) == 0
    output = capsys.readouterr().out
    assert "'press' is new" in output
    assert "Wrote the keys of 2 boxes and groups" in output
    assert "goes on getting them through it" in output
    assert "It keeps the keys that it has" in output
    passphrases = Passphrases(lambda _: PASSPHRASE, lambda _: PASSPHRASE)
    key = current_content_key(content_keys(tmp_path / "publisher", passphrases), "press")
    assert key.number == 2
    assert box.obtain(key.key, tmp_path / "repository") == key.secret


def test_a_stolen_box_of_a_group_is_shut_out_as_the_commands_say(
    run, box, identity_file, tmp_path, capsys
):
    run("group", "hall-two", str(identity_file))
    run("grant", "hall-two", "--family", "press")
    with pytest.raises(PublishError, match="only with --renew"):
        run("group", "hall-two", "--without", str(identity_file))
    capsys.readouterr()
    run("revoke", str(identity_file))
    said = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [words[2] for words in said] == ["group", "new-content-key"]
    for words in said:
        run(*words[2 : words.index("--repo")])
    passphrases = Passphrases(lambda _: PASSPHRASE, lambda _: PASSPHRASE)
    key = current_content_key(content_keys(tmp_path / "publisher", passphrases), "press")
    assert key.number == 2
    with pytest.raises(TrustError):
        box.obtain(key.key, tmp_path / "repository")


@pytest.mark.parametrize("name", ["nobody", "nothing.json"])
def test_a_recipient_that_is_not_there_is_named(run, name):
    with pytest.raises(PublishError, match=name):
        run("grant", name, "--family", "press")


def test_a_file_that_is_no_identity_is_named(run, tmp_path):
    (tmp_path / "device.json").write_text("{}")
    with pytest.raises(PublishError, match="no box's identity"):
        run("grant", str(tmp_path / "device.json"), "--family", "press")


def test_a_grant_without_a_family_is_of_all_that_the_repository_has(run, identity_file, capsys):
    assert run("grant", str(identity_file)) == 0
    output = capsys.readouterr().out
    assert "'vision' is new" in output
    assert "Granted press, vision to box" in output


@pytest.mark.parametrize(
    "words", [["grant", "device.json", "--family", "pres"], ["new-content-key", "pres"]]
)
@pytest.mark.usefixtures("identity_file")
def test_a_family_that_is_not_there_gets_no_keys(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PublishError, match="no family 'pres'; it has press, vision"):
        run(*words)
    assert [path.name for path in (tmp_path / "publisher").iterdir()] == ["root.json"]


@pytest.mark.parametrize("families", [()])
def test_a_grant_of_all_families_where_there_are_none_is_refused(run, identity_file):
    with pytest.raises(PublishError, match="No family"):
        run("grant", str(identity_file))


def test_secret_keys_are_not_laid_into_the_repository(run, identity_file, tmp_path):
    with pytest.raises(PublishError, match="everybody can read"):
        run("grant", str(identity_file), "--keys", str(tmp_path / "repository" / "keys"))
