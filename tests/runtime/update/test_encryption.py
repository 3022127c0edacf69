import hashlib

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from hypothesis import example, given
from hypothesis import strategies as st
from outpost_runtime.errors import TrustError
from outpost_runtime.update.encryption import (
    BLOCK_CONTEXT,
    message_size,
    seal,
    seal_randomly,
    sealed_size,
    unseal,
    unseal_into,
)
from outpost_runtime.update.release import BLOCK_BYTES, MAX_STORED_BYTES

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
CHUNK = 16384
BOUNDARIES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, BLOCK_BYTES + 1]


def _message(size):
    return hashlib.shake_256(b"message").digest(size)


def _refusal(sealed, key=KEY):
    with pytest.raises(TrustError) as refused:
        unseal(sealed, key)
    out = bytearray(b"\xaa" * _size(sealed))
    with pytest.raises(TrustError) as again:
        unseal_into(sealed, key, out)
    assert out in (b"\xaa" * len(out), bytes(len(out)))  # untouched or wiped
    assert again.value.message == refused.value.message
    return refused.value.message


def _size(sealed):
    try:
        return message_size(len(sealed))
    except TrustError:
        return 0


@pytest.mark.parametrize("size", BOUNDARIES)
def test_what_was_sealed_is_unsealed_at_every_chunk_boundary(size):
    message = _message(size)
    sealed = seal(message, KEY)
    assert len(sealed) == sealed_size(size)
    assert message_size(len(sealed)) == size
    assert unseal(sealed, KEY) == message


@pytest.mark.parametrize("size", BOUNDARIES)
@pytest.mark.parametrize("head", [0, 1, 7])
def test_a_message_is_unsealed_into_memory_that_is_there(size, head):
    message = _message(size)
    memory = bytearray(b"\xaa" * (max(size - head, 0) + 2))
    with memoryview(memory) as view:
        if head > size:
            with pytest.raises(TrustError, match="expected"):
                unseal_into(seal(message, KEY), KEY, view[1:-1], head=head)
            return
        assert unseal_into(seal(message, KEY), KEY, view[1:-1], head=head) == message[:head]
    assert memory == b"\xaa" + message[head:] + b"\xaa"


@given(st.binary(max_size=3 * CHUNK))
@example(b"")
def test_an_independent_implementation_of_the_specification_opens_it(message):
    decryptor = Cobblestone256Decryptor(KEY, b"outpost.block/1")
    sealed = seal(message, KEY)
    assert decryptor.update(sealed) + decryptor.finalize() == message


def test_the_stored_bytes_of_a_block_never_change():
    digest = hashlib.sha256(seal(_message(2 * CHUNK + 5), KEY)).hexdigest()
    assert digest == "32bcd7f253940ad31c6b91d9e5781afa6e94c4a0912709505e13244bc1e20688"


def test_equal_messages_are_equal_blocks_under_one_key_only():
    message = _message(100)
    assert seal(message, KEY) == seal(bytearray(message), KEY)
    assert seal(message, KEY) != seal(message, OTHER)
    assert seal(message, KEY)[:24] != seal(message[:-1], KEY)[:24]


def test_the_largest_block_and_its_coding_fit_the_limit_of_stored_bytes():
    assert sealed_size(1 + BLOCK_BYTES) <= MAX_STORED_BYTES


@given(st.integers(0, 40), st.integers(0, 1 << 20))
def test_sizes_agree_with_each_other(chunks, rest):
    size = chunks * CHUNK + rest
    assert message_size(sealed_size(size)) == size


@pytest.mark.parametrize("size", [0, 1, 40])
def test_every_truncation_is_refused(size):
    sealed = seal(_message(size), KEY)
    for length in range(len(sealed)):
        _refusal(sealed[:length])


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 9])
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 56, CHUNK, CHUNK + 16, CHUNK + 17])
def test_a_longer_message_that_was_cut_is_refused(size, cut):
    sealed = seal(_message(size), KEY)
    _refusal(sealed[: max(len(sealed) - cut, 0)])


def test_whole_chunks_that_are_missing_are_called_missing():
    assert "cut off" in _refusal(seal(_message(2 * CHUNK), KEY)[: 56 + CHUNK + 16])


@pytest.mark.parametrize("size", [0, 1, 40])
def test_every_flipped_bit_is_refused(size):
    sealed = seal(_message(size), KEY)
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        _refusal(damaged)


@given(st.data())
def test_a_flipped_bit_anywhere_in_many_chunks_is_refused_and_leaves_nothing(data):
    size = 3 * CHUNK + 100
    damaged = bytearray(seal(_message(size), KEY))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    out = bytearray(size)
    with pytest.raises(TrustError):
        unseal_into(damaged, KEY, out)
    assert out == bytes(size)


def test_chunks_that_changed_places_are_refused():
    sealed = seal(bytes(3 * CHUNK), KEY)
    first, second = sealed[56 : 56 + CHUNK + 16], sealed[56 + CHUNK + 16 : 56 + 2 * (CHUNK + 16)]
    _refusal(sealed[:56] + second + first + sealed[56 + 2 * (CHUNK + 16) :])


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    _refusal(garbage)


def test_another_key_is_named_as_the_reason():
    assert "another key" in _refusal(seal(b"text", KEY), OTHER)


def test_a_change_behind_the_beginning_is_named_as_the_reason():
    assert "changed or damaged" in _refusal(seal(b"text", KEY)[:-1] + b"\0")


def test_another_context_does_not_open_it():
    sealed = seal_randomly(b"text", KEY, b"outpost.prompts/1")
    assert unseal(sealed, KEY, b"outpost.prompts/1") == b"text"
    with pytest.raises(TrustError):
        unseal(sealed, KEY, BLOCK_CONTEXT)


def test_with_a_random_salt_equal_messages_become_different_bytes():
    assert seal_randomly(b"text", KEY, b"c") != seal_randomly(b"text", KEY, b"c")


def test_a_message_of_another_size_than_the_memory_is_refused_before_it_is_decrypted():
    memory = bytearray(b"\xaa" * 9)
    with pytest.raises(TrustError, match="10 bytes where 9 are expected"):
        unseal_into(seal(bytes(10), KEY), KEY, memory)
    assert memory == b"\xaa" * 9
