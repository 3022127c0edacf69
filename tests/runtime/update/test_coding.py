"""The coding of blocks: exact for any bytes, and strict about everything that came from outside."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.errors import TrustError
from outpost_runtime.update import coding
from outpost_runtime.update.elements import Kind
from outpost_runtime.update.levels import Order, Rows
from outpost_runtime.update.release import BLOCK_BYTES

KINDS = st.sampled_from(list(Kind))
SIZES = st.one_of(st.integers(0, 70), st.integers(71, 3000))


def _pair(kind, size, seed, change):
    """Bytes of random weights, and the same after a change of about ``change`` of their spread."""
    random = np.random.default_rng(seed)
    count = size // kind.bytes + 1
    weights = random.normal(size=count)
    moved = weights + change * random.normal(size=count) * random.exponential(size=count)
    return tuple(_stored(kind, w)[:size] for w in (weights, moved))


def _stored(kind, weights):
    if not kind.is_float:
        scale = 30 if kind is Kind.INT8 else 60
        return np.clip(np.rint(weights * scale) + 128, 0, 255).astype(np.uint8).tobytes()
    if kind is Kind.BFLOAT16:
        return (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return weights.astype({Kind.FLOAT16: np.float16, Kind.FLOAT32: np.float32}[kind]).tobytes()


@given(kind=KINDS, data=st.data())
def test_a_delta_is_exact_for_any_bytes_whatever(kind, data):
    size = data.draw(st.integers(0, 300))
    old, new = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    width = data.draw(st.integers(1, 40))
    rows = data.draw(
        st.none() | st.builds(Rows, width=st.just(width), first=st.integers(0, width - 1))
    )
    message = coding.encode_delta(kind, new, old, rows)
    assert coding.decode(message, size, old) == new


@given(
    kind=KINDS,
    size=SIZES,
    seed=st.integers(0, 99),
    change=st.sampled_from([0.0, 0.001, 0.1, 10.0]),
    width=st.sampled_from([None, 1, 7, 64, 500]),
)
def test_a_delta_of_weights_is_exact(kind, size, seed, change, width):
    old, new = _pair(kind, size, seed, change)
    rows = None if width is None else Rows(width=width, first=seed % width)
    message = coding.encode_delta(kind, new, old, rows)
    assert message[0] == kind
    assert coding.decode(memoryview(message), size, memoryview(old)) == new


@pytest.mark.parametrize("kind", [Kind.FLOAT16, Kind.BFLOAT16])
def test_every_float_becomes_every_other(kind):
    everything = np.arange(1 << 16, dtype=np.uint16)
    for shift in (1, 1 << 14, (1 << 15) + 3):
        new = np.roll(everything, shift).tobytes()
        message = coding.encode_delta(kind, new, everything.tobytes())
        assert coding.decode(message, len(new), everything.tobytes()) == new


def test_nan_infinity_and_both_zeros_survive():
    numbers = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]
    old = np.array(numbers, np.float32).tobytes()
    new = np.array(numbers[::-1], np.float32).tobytes()
    message = coding.encode_delta(Kind.FLOAT32, new, old)
    assert coding.decode(message, len(new), old) == new


@pytest.mark.parametrize("kind", Kind)
def test_a_whole_block_of_every_kind_is_exact(kind):
    old, new = _pair(kind, BLOCK_BYTES, seed=3, change=0.05)
    message = coding.encode_delta(kind, new, old, Rows(width=640, first=100))
    assert coding.decode(message, BLOCK_BYTES, old) == new
    assert len(message) < 0.8 * BLOCK_BYTES


@pytest.mark.parametrize("kind", Kind)
def test_no_difference_costs_next_to_nothing(kind):
    old, _ = _pair(kind, BLOCK_BYTES, seed=5, change=0.0)
    assert len(coding.encode_delta(kind, old, old)) < 150


def test_a_rare_change_costs_about_its_entropy():
    random = np.random.default_rng(7)
    old = random.integers(60, 190, BLOCK_BYTES).astype(np.uint8)
    changed = random.random(BLOCK_BYTES) < 0.02
    new = old + np.where(changed, random.choice([1, 255], BLOCK_BYTES), 0).astype(np.uint8)
    entropy = (0.02 * np.log2(2 / 0.02) + 0.98 * np.log2(1 / 0.98)) * BLOCK_BYTES / 8
    message = coding.encode_delta(Kind.INT8, new.tobytes(), old.tobytes())
    assert len(message) < 1.1 * entropy
    assert coding.decode(message, BLOCK_BYTES, old.tobytes()) == new.tobytes()


def test_rows_and_columns_that_change_alike_cost_less():
    random = np.random.default_rng(8)
    old = random.integers(60, 190, (512, 512)).astype(np.uint8)
    scales = [np.exp(random.normal(size=shape)) for shape in ((512, 1), (1, 512))]
    change = np.rint(random.normal(size=old.shape) * scales[0] * scales[1])
    new = old + change.astype(np.int64).astype(np.uint8)
    alone = coding.encode_delta(Kind.INT8, new.tobytes(), old.tobytes())
    message = coding.encode_delta(Kind.INT8, new.tobytes(), old.tobytes(), Rows(width=512, first=0))
    assert message[1] == Order.PROFILE
    assert len(message) < 0.82 * len(alone)
    assert coding.decode(message, new.size, old.tobytes()) == new.tobytes()


def _merged(rows, width, rank, seed=1, *, limit=256, spread=2.0):
    """A matrix on a grid, and the same after an adapter of that rank was merged into it."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(rows, width)) * limit / 10
    change = random.normal(size=(rows, rank)) @ random.normal(size=(rank, width))
    change *= spread / np.sqrt(rank)
    stored = (np.clip(np.rint(w) + limit // 2, 0, limit - 1) for w in (weights, weights + change))
    return tuple(s.astype(np.uint8).ravel() for s in stored)


def _packed(nibbles):
    return (nibbles[::2] | (nibbles[1::2] << 4)).tobytes()


def test_a_merged_adapter_costs_little_more_than_what_was_rounded():
    old, new = _merged(600, 1000, rank=8)
    old, new = old.tobytes(), new.tobytes()
    message = coding.encode_delta(Kind.INT8, new, old, Rows(width=1000, first=0))
    assert message[1] == Order.LOW_RANK
    # With the change known exactly, rounding leaves 0.72 bits of a number on average.
    assert 0.07 < len(message) / len(new) < 0.125
    assert len(message) < 0.4 * len(coding.encode_delta(Kind.INT8, new, old))
    assert coding.decode(message, len(new), old) == new


@given(
    shape=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    rank=st.integers(1, 6),
    seed=st.integers(0, 20),
    spread=st.sampled_from([0.01, 1.0, 30.0, 300.0]),
    kind=st.sampled_from([Kind.INT8, Kind.INT4]),
)
def test_a_merged_adapter_is_exact_wherever_a_block_begins_and_ends(
    shape, cut, rank, seed, spread, kind
):
    limit = 256 if kind is Kind.INT8 else 16
    pair = _merged(*shape, rank, seed, limit=limit, spread=spread)
    begin, end = (2 * (at % (shape[0] * shape[1] // 4)) for at in cut)
    old, new = (part[begin : len(part) // 2 * 2 - end] for part in pair)
    rows = Rows(width=shape[1], first=begin % shape[1])
    if kind is Kind.INT4:
        old, new = _packed(old), _packed(new)
    else:
        old, new = old.tobytes(), new.tobytes()
    message = coding.encode_delta(kind, new, old, rows)
    assert coding.decode(message, len(new), old) == new


def _low_rank_message():
    old, new = _merged(90, 110, rank=2, spread=5.0)
    message = coding.encode_delta(Kind.INT8, new.tobytes(), old.tobytes(), Rows(width=110, first=0))
    assert message[1] == Order.LOW_RANK
    return message, old.tobytes()


@given(data=st.data())
def test_a_damaged_low_rank_is_an_error_or_another_block_of_the_same_size(data):
    message, old = _low_rank_message()
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(1, 30) | st.integers(1, len(message) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        made = coding.decode(damaged, len(old), old)
    except TrustError:
        return
    assert len(made) == len(old)


def test_a_low_rank_that_is_cut_anywhere_is_an_error():
    message, old = _low_rank_message()
    for end in range(0, len(message), 7):
        with pytest.raises(TrustError):
            coding.decode(message[:end], len(old), old)


@pytest.mark.parametrize("rank", [0, 60, 255])
def test_a_rank_that_cannot_be_worth_it_is_refused(rank):
    message, old = _low_rank_message()
    damaged = bytearray(message)
    damaged[10] = rank
    with pytest.raises(TrustError, match="rank"):
        coding.decode(damaged, len(old), old)


VECTORS = json.loads((Path(__file__).parent / "deltas.json").read_text())


@pytest.mark.parametrize("name", VECTORS)
def test_deltas_that_were_published_once_are_read_for_ever(name):
    vector = VECTORS[name]
    old = hashlib.shake_256(name.encode()).digest(vector["size"])
    made = coding.decode(base64.b64decode(vector["delta"]), len(old), old)
    assert hashlib.sha256(made).hexdigest() == vector["new_sha256"]
    assert made != old


@given(data=st.binary(min_size=1, max_size=3000))
def test_plain_and_compressed_blocks_are_exact(data):
    assert coding.decode(coding.encode_plain(data), len(data)) == data
    assert coding.decode(coding.encode_zstd(data), len(data)) == data


@given(kind=KINDS, size=SIZES, seed=st.integers(0, 20), data=st.data())
def test_a_damaged_delta_is_an_error_or_another_block_of_the_same_size(kind, size, seed, data):
    old, new = _pair(kind, size, seed, 0.3)
    rows = data.draw(st.sampled_from([None, Rows(width=16, first=3)]))
    message = bytearray(coding.encode_delta(kind, new, old, rows))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(1, len(message) - 1))
        message[place] ^= data.draw(st.integers(1, 255))
    try:
        made = coding.decode(message, size, old)
    except TrustError:
        return
    assert len(made) == size


@given(kind=KINDS, garbage=st.binary(max_size=400), size=st.integers(0, 200))
def test_garbage_is_an_error_or_a_block_of_that_size(kind, garbage, size):
    try:
        made = coding.decode(bytes([kind]) + garbage, size, bytes(size))
    except TrustError:
        return
    assert len(made) == size


@pytest.mark.parametrize("kind", Kind)
def test_a_delta_that_is_cut_anywhere_is_an_error(kind):
    old, new = _pair(kind, 2003, seed=1, change=0.2)
    message = coding.encode_delta(kind, new, old, Rows(width=50, first=7))
    for end in range(len(message)):
        with pytest.raises(TrustError):
            coding.decode(message[:end], 2003, old)
    with pytest.raises(TrustError, match="longer"):
        coding.decode(message + b"\0", 2003, old)


def test_a_delta_fits_only_a_source_of_its_size():
    message = coding.encode_delta(Kind.INT8, bytes(100), bytes(range(100)))
    for source in (None, b"", bytes(99), bytes(101)):
        with pytest.raises(TrustError, match="does not fit"):
            coding.decode(message, 100, source)


def test_a_block_of_another_size_is_refused():
    for message in (coding.encode_plain(bytes(100)), coding.encode_zstd(bytes(100))):
        for size in (99, 101):
            with pytest.raises(TrustError):
                coding.decode(message, size)


@pytest.mark.parametrize("byte", [2, 15, 21, 255])
def test_an_unknown_coding_is_refused(byte):
    with pytest.raises(TrustError, match=f"coding {byte}"):
        coding.decode(bytes([byte, 0]), 1, b"0")


def test_an_empty_message_is_refused():
    with pytest.raises(TrustError, match="empty"):
        coding.decode(b"", 0)


def _bomb(declared):
    frame = zstandard.ZstdCompressor(level=19, write_content_size=declared)
    return frame.compress(bytes(64 << 20))


@pytest.mark.parametrize("declared", [True, False])
def test_a_small_frame_of_many_megabytes_is_never_expanded(declared):
    import tracemalloc  # noqa: PLC0415 - only here

    bomb = _bomb(declared)
    tracemalloc.start()
    with pytest.raises(TrustError, match="size"):
        coding.decode(bytes([coding.ZSTD]) + bomb, BLOCK_BYTES)
    inside = bytes([Order.PLACE, 1]) + len(bomb).to_bytes(3, "little") + bomb
    with pytest.raises(TrustError, match="size"):
        coding.decode(bytes([Kind.INT8]) + inside, BLOCK_BYTES, bytes(BLOCK_BYTES))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_piece_does_not_split_for_ever():
    message = bytes([Kind.INT8, Order.PLACE]) + bytes([2]) * 1000
    with pytest.raises(TrustError, match="form"):
        coding.decode(message, BLOCK_BYTES, bytes(BLOCK_BYTES))


@pytest.mark.parametrize(
    ("width", "first", "bias"), [(0, 0, 0), (101, 0, 0), (10, 10, 0), (10, 0, 2000)]
)
def test_an_impossible_profile_or_shape_is_refused(width, first, bias):
    fields = width.to_bytes(4, "little") + first.to_bytes(4, "little")
    fields += bias.to_bytes(2, "little", signed=True)
    with pytest.raises(TrustError, match="impossible"):
        coding.decode(bytes([Kind.INT8, Order.PROFILE]) + fields + bytes(500), 100, bytes(100))


@pytest.mark.parametrize(
    ("kind", "order"),
    [(Kind.INT8, 1), (Kind.INT4, 2), (Kind.FLOAT16, 0), (Kind.FLOAT32, 3)],
)
def test_an_order_that_a_kind_does_not_have_is_refused(kind, order):
    with pytest.raises(TrustError, match="sorted"):
        coding.decode(bytes([kind, order]) + bytes(500), 100, bytes(100))


def test_a_shift_that_floats_cannot_have_is_refused():
    message = bytes([Kind.FLOAT16, Order.VALUE, 0]) + bytes([9] * 64) + bytes(300)
    with pytest.raises(TrustError, match="shift"):
        coding.decode(message, 4, bytes(4))
