import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_export.errors import PublishError
from outpost_export.publishing.sealed_secrets import (
    encode_sealed_secret,
    open_secret,
    parse_sealed_secret,
    seal_secret,
)
from outpost_runtime.update.content_keys import content_key_id

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of keys that live as long as a test
SECRET = bytes(range(32))
CHEAP = 1 << 10
SEALED = seal_secret(
    SECRET,
    PASSPHRASE,
    kind="content",
    name="press",
    number=1,
    key=content_key_id(SECRET),
    cost=CHEAP,
)


def test_a_secret_is_opened_by_its_passphrase():
    document = parse_sealed_secret(encode_sealed_secret(SEALED), "here")
    assert document == SEALED
    assert open_secret(document, PASSPHRASE) == SECRET


@pytest.mark.parametrize(
    "change",
    [{"name": "lathe"}, {"kind": "group"}, {"number": 2}, {"cost": CHEAP * 2}, {"key": "0" * 64}],
)
def test_what_a_key_file_says_of_itself_cannot_be_changed(change):
    with pytest.raises(PublishError):
        open_secret(dataclasses.replace(SEALED, **change), PASSPHRASE)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "outpost-sealed-secret/2"},
        {"scrypt_n": 1 << 30},
        {"scrypt_n": 1000},
        {"scrypt_n": 2},
        {"salt": ""},
        {"sealed": "AAAA"},
        {"number": 0},
        {"name": "../x"},
        {"more": 1},
    ],
)
def test_a_key_file_that_is_not_exactly_right_is_refused(change):
    document = json.loads(encode_sealed_secret(SEALED)) | change
    with pytest.raises(PublishError):
        parse_sealed_secret(json.dumps(document).encode(), "here")


@given(st.binary(max_size=200))
def test_garbage_is_no_key_file(garbage):
    with pytest.raises(PublishError):
        parse_sealed_secret(garbage, "here")
