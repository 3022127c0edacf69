"""Key files: what opens them, what does not, and what gets out."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from outpost_export.errors import PublishError
from outpost_export.publishing import key_files
from outpost_export.publishing.key_files import make_key, read_public_key, read_signer
from outpost_export.publishing.signers import (
    PASSPHRASE_VARIABLE,
    KeyFolders,
    ask_new_passphrase,
    ask_passphrase,
)

from tests.support.publisher import Publisher

PHRASE = "six random words are good"


@pytest.fixture(autouse=True)
def _cheap_stretching(monkeypatch):
    monkeypatch.setattr(key_files, "_SCRYPT_P", 1)


def _asker(*passphrases):
    asked, rest = [], list(passphrases)

    def ask(what):
        asked.append(what)
        return rest.pop(0)

    return ask, asked


def test_a_key_signs_what_its_public_half_verifies(tmp_path):
    key = make_key(tmp_path, "root", PHRASE)
    (private,) = tmp_path.glob("root-*.pem")
    signer = read_signer(private, key, PHRASE)
    key.verify_signature(signer.sign(b"metadata"), b"metadata")
    assert read_public_key(private.with_suffix(".pub")) == key


def test_a_private_key_is_readable_by_its_owner_only_and_holds_no_plain_key(tmp_path):
    key = make_key(tmp_path, "root", PHRASE)
    (private,) = tmp_path.glob("*.pem")
    assert private.stat().st_mode & 0o777 == 0o600
    plain = read_signer(private, key, PHRASE).private_bytes
    secret = plain.split(b"\n")[1]
    assert secret not in private.read_bytes()
    assert b"ENCRYPTED" in private.read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no OpenSSL here")
def test_openssl_reads_the_file(tmp_path):
    make_key(tmp_path, "root", PHRASE)
    (private,) = tmp_path.glob("*.pem")
    out = subprocess.run(
        ["openssl", "pkey", "-in", private, "-passin", f"pass:{PHRASE}", "-pubout"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert out == private.with_suffix(".pub").read_bytes()


def test_the_full_stretching_is_what_is_written_down(monkeypatch):
    monkeypatch.undo()
    sealed = key_files._encrypted(b"plain", PHRASE.encode())
    assert (key_files._SCRYPT_N, key_files._SCRYPT_R, key_files._SCRYPT_P) == (16384, 8, 8)
    assert b"ENCRYPTED PRIVATE KEY" in sealed


@pytest.mark.parametrize("passphrase", ["", "not these words", PHRASE + " "])
def test_a_wrong_passphrase_opens_nothing_and_is_not_told_on(tmp_path, passphrase):
    key = make_key(tmp_path, "root", PHRASE)
    (private,) = tmp_path.glob("*.pem")
    with pytest.raises(PublishError) as caught:
        read_signer(private, key, passphrase)
    assert not passphrase or passphrase not in str(caught.value)


def test_a_damaged_or_plain_key_file_opens_nothing(tmp_path):
    key = make_key(tmp_path, "root", PHRASE)
    (private,) = tmp_path.glob("*.pem")
    good = private.read_bytes()
    plain = read_signer(private, key, PHRASE).private_bytes
    for data in (b"", good[:100], good.replace(b"A", b"B"), plain, b"\0" * 10_000_000):
        private.write_bytes(data)
        with pytest.raises(PublishError):
            read_signer(private, key, PHRASE)


def test_the_key_of_another_file_is_refused(tmp_path):
    key = make_key(tmp_path, "root", PHRASE)
    make_key(tmp_path, "targets", PHRASE)
    (other,) = tmp_path.glob("targets-*.pem")
    with pytest.raises(PublishError, match="not the key of the file beside it"):
        read_signer(other, key, PHRASE)


def test_a_short_passphrase_makes_no_key(tmp_path):
    with pytest.raises(PublishError, match="too short"):
        make_key(tmp_path, "root", "short")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
)
def test_garbage_is_no_public_key(tmp_path, data):
    (tmp_path / "key.pub").write_bytes(data)
    with pytest.raises(PublishError, match="no public key"):
        read_public_key(tmp_path / "key.pub")
    with pytest.raises(PublishError, match="cannot be read"):
        read_public_key(tmp_path / "nothing.pub")


def test_keys_are_found_in_several_folders_and_asked_for_once(tmp_path):
    folders = [tmp_path / "disk", tmp_path / "stick"]
    keys = [make_key(folder, "root", PHRASE) for folder in folders]
    same = make_key(folders[0], "online", PHRASE)
    ask, asked = _asker(PHRASE)
    signers = KeyFolders(folders, ask)
    assert all(signers.signer(key) is not None for key in (*keys, same, *keys))
    assert len(asked) == 1


def test_folders_with_different_passphrases_are_asked_for_each(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    keys = [make_key(folder, "root", f"{PHRASE} {folder.name}") for folder in folders]
    ask, asked = _asker(*(f"{PHRASE} {folder.name}" for folder in folders))
    signers = KeyFolders(folders, ask)
    assert [signers.signer(key).public_key for key in keys] == keys
    assert [Path(path).parent for path in asked] == folders


def test_a_key_that_is_not_here_is_nobodys_fault(tmp_path):
    key = make_key(tmp_path / "a", "root", PHRASE)
    ask, asked = _asker()
    assert KeyFolders([tmp_path / "b", tmp_path / "nothing"], ask).signer(key) is None
    (private,) = (tmp_path / "a").glob("*.pem")
    private.unlink()  # a public key alone signs nothing
    assert KeyFolders([tmp_path / "a"], ask).signer(key) is None
    assert asked == []


def test_a_passphrase_comes_from_the_environment_or_a_person(monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PHRASE)
    assert ask_passphrase("a key") == ask_new_passphrase("a key") == PHRASE
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for ask in (ask_passphrase, ask_new_passphrase):
        with pytest.raises(PublishError, match="nobody is here") as caught:
            ask("a key")
        assert PASSPHRASE_VARIABLE in caught.value.hint


def test_a_new_passphrase_is_typed_twice(monkeypatch):
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    ask, _ = _asker(PHRASE, PHRASE, PHRASE, "other words")
    assert ask_new_passphrase("a key", ask) == PHRASE
    with pytest.raises(PublishError, match="differ"):
        ask_new_passphrase("a key", ask)


def test_the_root_is_kept_with_the_keys_and_the_newest_one_counts(tmp_path):
    folders = [tmp_path / "disk", tmp_path / "stick"]
    for folder in folders:
        folder.mkdir()
    publisher = Publisher()
    publisher.rotate("root")
    first, second = (publisher.files[f"metadata/{n}.root.json"] for n in (1, 2))
    signers = KeyFolders(folders, ask_passphrase)
    with pytest.raises(PublishError, match="root to judge the repository by"):
        signers.root()
    signers.keep_root(first)
    KeyFolders(folders[1:], ask_passphrase).keep_root(second)
    assert signers.root() == second
    assert (folders[0] / "root.json").read_bytes() == first
