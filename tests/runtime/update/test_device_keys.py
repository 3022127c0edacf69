import base64
import errno
import json
import logging
import os
import sys
from pathlib import Path

import outpost_runtime.update
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from outpost_runtime.errors import (
    ConfigurationError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    TrustError,
)
from outpost_runtime.update.content_keys import wrap_content_key
from outpost_runtime.update.device import is_provisioned
from outpost_runtime.update.device_identity import encode_identity, parse_identity
from outpost_runtime.update.device_keys import SecretKeyStore, open_keys, provision_keys

from tests.support.power import cut_at, cuts_of

SECRET = bytes(range(32))


@pytest.fixture
def keys(tmp_path):
    return provision_keys(tmp_path)


def _secret_file(store):
    return store / "keys" / "device.secret"


def test_a_box_has_the_same_keys_whenever_they_are_opened(tmp_path, keys):
    identity = keys.identity("terminal")
    assert open_keys(tmp_path).identity("terminal") == identity
    assert provision_keys(tmp_path).identity("terminal") == identity


def test_two_boxes_have_different_keys(tmp_path):
    first, second = (provision_keys(tmp_path / n).identity("terminal") for n in ("a", "b"))
    assert {first.id, first.recipient}.isdisjoint({second.id, second.recipient})


def test_a_box_unwraps_what_was_wrapped_for_its_identity(keys):
    wrapped = wrap_content_key(SECRET, keys.identity("terminal").encryption_key)
    assert keys.unwrap(wrapped) == SECRET


def test_a_box_does_not_unwrap_what_was_wrapped_for_another(tmp_path, keys):
    other = provision_keys(tmp_path / "other").identity("terminal")
    with pytest.raises(TrustError):
        keys.unwrap(wrap_content_key(SECRET, other.encryption_key))


def test_its_signature_is_checked_with_its_identity(keys):
    signing_key = Ed25519PublicKey.from_public_bytes(keys.identity("terminal").signing_key)
    signing_key.verify(keys.sign(b"text"), b"text")


def test_keys_for_its_own_files_differ_by_purpose_and_stay_the_same(tmp_path, keys):
    assert keys.derive("prompts") == open_keys(tmp_path).derive("prompts")
    assert len({keys.derive("prompts"), keys.derive("other"), SECRET}) == 3
    assert len(keys.derive("prompts")) == 32


def test_the_secret_is_made_into_keys_the_same_way_for_ever():
    identity = SecretKeyStore(SECRET, "here").identity("terminal")
    assert identity.id == "a12aacaec81c3acf7f48d0d4e8c839051aeb4542e1e2ff584d4358dbb3cffce9"


def test_only_the_owner_can_read_the_secret(tmp_path):
    usual = os.umask(0)
    try:
        provision_keys(tmp_path)
    finally:
        os.umask(usual)
    assert _secret_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_secret_that_others_could_read_is_closed_to_them_and_they_are_told(
    tmp_path, keys, caplog
):
    _secret_file(tmp_path).chmod(0o644)
    assert open_keys(tmp_path).identity("terminal") == keys.identity("terminal")
    assert _secret_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert "could be read by others" in caplog.text


def test_a_box_that_was_not_provisioned_says_so(tmp_path):
    with pytest.raises(NotFoundError, match="no keys") as error:
        open_keys(tmp_path)
    assert "outpost provision" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("content", [b"", SECRET[:-1], SECRET + b"\n"])
def test_a_damaged_secret_is_named_and_never_replaced(tmp_path, content):
    _secret_file(tmp_path).write_bytes(content)
    for act in (open_keys, provision_keys):
        with pytest.raises(StoreError):
            act(tmp_path)
    assert _secret_file(tmp_path).read_bytes() == content


@pytest.mark.usefixtures("keys")
def test_keys_in_a_file_are_not_silently_joined_by_keys_in_a_tpm(tmp_path):
    with pytest.raises(StoreError, match="has keys already"):
        provision_keys(tmp_path, tpm="swtpm:path=nowhere")


@pytest.mark.parametrize("act", [open_keys, lambda store: provision_keys(store, tpm="any")])
def test_a_missing_library_for_the_tpm_is_named(tmp_path, monkeypatch, act):
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    monkeypatch.delitem(sys.modules, "outpost_runtime.update.device_keys_tpm", raising=False)
    monkeypatch.delattr(outpost_runtime.update, "device_keys_tpm", raising=False)
    (tmp_path / "keys").mkdir()
    if act is open_keys:
        (tmp_path / "keys" / "device.tpm.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="tpm2_pytss"):
        act(tmp_path)


def test_people_are_told_that_a_file_is_weak(keys):
    assert "whoever copies this box's disk has its keys" in keys.describe()


def test_the_secret_is_in_no_text_about_the_keys_and_in_no_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    keys = provision_keys(tmp_path)
    secret = _secret_file(tmp_path).read_bytes()
    texts = f"{keys!r} {keys} {keys.describe()} {keys.identity('terminal')!r} {caplog.text}"
    texts += encode_identity(keys.identity("terminal")).decode()
    for spelled in (repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode()):
        assert spelled not in texts


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "keys").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="keys"):
        provision_keys(tmp_path)


@pytest.mark.incident("power cut", where="between any two writes of provisioning")
def test_the_power_may_be_cut_between_any_two_writes_of_provisioning(tmp_path):
    total = cuts_of(lambda: provision_keys(tmp_path / "whole"))
    assert total >= 5
    for number in range(total):
        store = tmp_path / str(number)
        assert cut_at(number, lambda store=store: provision_keys(store))
        if _secret_file(store).exists():
            before = open_keys(store).identity("terminal")
            assert provision_keys(store).identity("terminal") == before
        again = provision_keys(store).identity("terminal")
        assert open_keys(store).identity("terminal") == again
        assert {path.name for path in (store / "keys").iterdir()} == {".lock", "device.secret"}


def test_an_identity_survives_its_document():
    identity = SecretKeyStore(SECRET, "here").identity("press-terminal.2")
    assert parse_identity(encode_identity(identity)) == identity


@pytest.mark.parametrize(
    "change",
    [
        {"format": "outpost-device/2"},
        {"id": "0" * 64},
        {"model": "Upper Case"},
        {"encryption_key": "00" * 32},  # another key has another id
        {"signing_key": "00" * 32},
        {"signing_key": "00"},
        {"more": 1},
    ],
)
def test_an_identity_that_was_changed_is_refused(change):
    document = json.loads(encode_identity(SecretKeyStore(SECRET, "here").identity("terminal")))
    with pytest.raises(InvalidInputError):
        parse_identity(json.dumps(document | change).encode())


@pytest.mark.parametrize("model", ["", "Press Terminal", "../x", "x" * 64])
def test_a_device_model_that_no_offer_could_name_is_refused_on_the_box_already(keys, model):
    with pytest.raises(InvalidInputError, match="no device model"):
        keys.identity(model)


def test_nobody_can_claim_a_box_with_a_signing_key_of_his_own():
    box = SecretKeyStore(SECRET, "here").identity("terminal")
    thief = SecretKeyStore(bytes(32), "there").identity("terminal")
    document = json.loads(encode_identity(box)) | {"signing_key": thief.signing_key.hex()}
    with pytest.raises(InvalidInputError, match="not the id of these keys"):
        parse_identity(json.dumps(document).encode())


def test_a_keys_folder_of_another_user_is_named(tmp_path, monkeypatch):
    provision_keys(tmp_path)
    monkeypatch.setattr(Path, "exists", _denied)
    with pytest.raises(StoreError, match=f"{tmp_path / 'keys'} cannot be read: Permission denied"):
        open_keys(tmp_path)


def test_a_store_of_another_user_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", _denied)
    with pytest.raises(StoreError, match="cannot be read: Permission denied"):
        is_provisioned(tmp_path)


def _denied(_):
    raise PermissionError(errno.EACCES, "Permission denied")
