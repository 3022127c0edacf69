import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.errors import TrustError
from outpost_runtime.update.content_keys import (
    MAX_WRAPPED_BYTES,
    SecretKind,
    content_key_id,
    encode_wrapped_key,
    new_content_key,
    parse_wrapped_key,
    public_bytes,
    recipient_id,
    unwrap,
    unwrap_through_group,
    wrap_content_key,
    wrap_group_key,
)

SECRET = bytes(range(32))
BOX = X25519PrivateKey.from_private_bytes(bytes([1]) * 32)
STRANGER = X25519PrivateKey.from_private_bytes(bytes([2]) * 32)
GROUP = X25519PrivateKey.from_private_bytes(bytes([3]) * 32)


def _wrapped(secret=SECRET, recipient=BOX):
    return wrap_content_key(secret, public_bytes(recipient))


def test_a_content_key_reaches_its_recipient_through_a_document():
    wrapped = parse_wrapped_key(encode_wrapped_key(_wrapped()))
    assert wrapped.key == content_key_id(SECRET)
    assert wrapped.recipient == recipient_id(public_bytes(BOX))
    assert unwrap(wrapped, BOX) == SECRET


def test_the_document_does_not_show_the_key():
    document = encode_wrapped_key(_wrapped())
    assert SECRET.hex().encode() not in document
    assert SECRET not in document


def test_two_new_content_keys_are_different():
    assert len(new_content_key()) == 32
    assert new_content_key() != new_content_key()


def test_another_recipient_cannot_unwrap_it():
    with pytest.raises(TrustError, match="another recipient"):
        unwrap(_wrapped(), STRANGER)


@pytest.mark.parametrize(
    "change",
    [
        {"key": content_key_id(b"another key")},
        {"recipient": recipient_id(public_bytes(STRANGER))},
        {"kind": SecretKind.GROUP},
    ],
)
def test_what_a_wrapped_key_says_of_itself_cannot_be_changed(change):
    with pytest.raises(TrustError):
        unwrap(dataclasses.replace(_wrapped(), **change), BOX)


def test_a_key_that_a_stranger_wrapped_under_the_name_of_another_is_refused():
    forged = _forged(key=content_key_id(SECRET), secret=bytes(32))
    with pytest.raises(TrustError, match="another key"):
        unwrap(forged, BOX)


def test_a_secret_of_another_size_is_refused():
    for secret in (b"", SECRET[:-1]):
        with pytest.raises(TrustError, match="another key"):
            unwrap(_forged(key=content_key_id(secret), secret=secret), BOX)


def _forged(*, key, secret):
    # What anybody can do: HPKE does not say who wrapped.
    from outpost_runtime.update import content_keys  # noqa: PLC0415

    return content_keys._wrap(SecretKind.CONTENT, key, secret, public_bytes(BOX))


@given(st.integers(0, 8 * 80 - 1))
def test_every_flipped_bit_of_the_ciphertext_is_refused(bit):
    sealed = bytearray(_wrapped().sealed)
    sealed[bit // 8] ^= 1 << bit % 8
    damaged = dataclasses.replace(_wrapped(), sealed=bytes(sealed))
    with pytest.raises(TrustError):
        unwrap(damaged, BOX)


def test_an_encapsulated_key_that_is_no_point_is_refused():
    sealed = bytes(32) + _wrapped().sealed[32:]
    with pytest.raises(TrustError):
        unwrap(dataclasses.replace(_wrapped(), sealed=sealed), BOX)


def test_a_box_of_a_group_gets_a_content_key_through_it():
    group = parse_wrapped_key(encode_wrapped_key(wrap_group_key(GROUP, public_bytes(BOX))))
    assert group.key == recipient_id(public_bytes(GROUP))
    assert unwrap_through_group(_wrapped(recipient=GROUP), unwrap(group, BOX)) == SECRET
    with pytest.raises(TrustError):
        unwrap(group, STRANGER)


def test_a_group_key_is_not_taken_for_a_content_key():
    group = wrap_group_key(GROUP, public_bytes(BOX))
    with pytest.raises(TrustError):
        unwrap(dataclasses.replace(group, kind=SecretKind.CONTENT), BOX)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "outpost-wrapped-key/2"},
        {"kind": "other"},
        {"key": "../../etc"},
        {"recipient": "A" * 64},
        {"sealed": ""},
        {"sealed": "AAAA"},
        {"sealed": "é" * 108},
        {"sealed": "A" * 108 + "===="},
        {"more": 1},
    ],
)
def test_a_document_that_is_not_exactly_right_is_refused(change):
    document = json.loads(encode_wrapped_key(_wrapped())) | change
    with pytest.raises(TrustError):
        parse_wrapped_key(json.dumps(document).encode())


def test_a_document_that_is_too_large_is_refused_before_it_is_read():
    document = encode_wrapped_key(_wrapped()) + b" " * MAX_WRAPPED_BYTES
    with pytest.raises(TrustError, match="larger than"):
        parse_wrapped_key(document)


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(TrustError):
        parse_wrapped_key(garbage)
