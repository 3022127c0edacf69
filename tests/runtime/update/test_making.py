"""A box makes blocks of older ones and deltas: the very bytes of the release, or nothing."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.errors import TrustError
from outpost_runtime.update.coding import encode_delta, encode_plain, encode_zstd
from outpost_runtime.update.elements import Kind
from outpost_runtime.update.encryption import seal
from outpost_runtime.update.making import make_block
from outpost_runtime.update.release import BLOCK_BYTES, Block

KEY = bytes(range(32))


def _block(data, key=KEY):
    stored = seal(encode_plain(data), key)
    return Block(id=hashlib.sha256(stored).hexdigest(), size=len(data), stored=len(stored)), stored


def _pair(size, seed=1):
    random = np.random.default_rng(seed)
    old = random.integers(0, 256, size).astype(np.uint8)
    new = old + (random.random(size) < 0.1).astype(np.uint8)
    return old.tobytes(), new.tobytes()


@given(kind=st.sampled_from(list(Kind)), size=st.integers(1, 5000), seed=st.integers(0, 50))
def test_a_made_block_has_the_bytes_of_the_fetched_one(kind, size, seed):
    old, new = _pair(size, seed)
    block, stored = _block(new)
    delta = seal(encode_delta(kind, new, old), KEY)
    assert make_block(delta, _block(old)[1], block, KEY) == stored


def test_a_whole_block_is_made_from_views_of_larger_buffers():
    old, new = _pair(BLOCK_BYTES)
    block, stored = _block(new)
    delta = bytearray(b"..." + seal(encode_delta(Kind.INT8, new, old), KEY))
    source = memoryview(b"." + _block(old)[1])[1:]
    assert make_block(memoryview(delta)[3:], source, block, KEY) == stored


@pytest.fixture
def parts():
    old, new = _pair(3000)
    block, _ = _block(new)
    return seal(encode_delta(Kind.INT8, new, old), KEY), _block(old)[1], block


def test_another_source_makes_nothing(parts):
    delta, _, block = parts
    other = _block(_pair(3000, seed=2)[0])[1]
    with pytest.raises(TrustError, match=f"another block than {block.id[:12]}"):
        make_block(delta, other, block, KEY)


def test_a_source_of_another_size_makes_nothing(parts):
    delta, _, block = parts
    with pytest.raises(TrustError, match="does not fit"):
        make_block(delta, _block(bytes(2999))[1], block, KEY)


def test_another_key_makes_nothing(parts):
    with pytest.raises(TrustError):
        make_block(*parts, bytes(32))


@pytest.mark.parametrize("part", [0, 1])
def test_a_changed_or_cut_part_makes_nothing(parts, part):
    for damaged in (parts[part][:-1], parts[part][:40], b"", parts[part][:-1] + b"\0"):
        changed = [*parts]
        changed[part] = damaged
        with pytest.raises(TrustError):
            make_block(*changed, KEY)


def test_a_compressed_block_is_no_source(parts):
    delta, _, block = parts
    source = seal(encode_zstd(bytes(3000)), KEY)
    with pytest.raises(TrustError):
        make_block(delta, source, block, KEY)


def test_a_delta_in_place_of_a_source_makes_nothing(parts):
    delta, _, block = parts
    with pytest.raises(TrustError):
        make_block(delta, delta, block, KEY)


def test_a_full_block_in_place_of_a_delta_is_taken_only_if_it_is_the_block(parts):
    _, source, block = parts
    _, new = _pair(3000)
    full = _block(new)[1]
    assert make_block(full, source, block, KEY) == full
    with pytest.raises(TrustError):
        make_block(source, source, block, KEY)
