import numpy as np
import pytest
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.tensors import TensorSpec
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.memory import (
    BLOCK_TOKENS,
    KeyValueMemory,
    MemoryPlan,
    plan_memory,
)

SPECS = [
    TensorSpec(name=f"past_key_values.0.{kind}", datatype="FP32", shape=(None, 2, None, 3))
    for kind in ("key", "value")
]


@pytest.fixture
def memory():
    memory = KeyValueMemory(SPECS, rows=3, row_tokens=4 * BLOCK_TOKENS, blocks=6)
    rng = np.random.default_rng(0)
    for array in memory.rows(0, 3).values():
        array[:] = rng.random(array.shape)
    return memory


def _row(memory, row, tokens):
    return [array[row, :, :tokens].copy() for array in memory.rows(0, 3).values()]


def _same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_moved_row_is_the_same_row(memory):
    before = _row(memory, 2, 21)
    untouched = _row(memory, 1, 64)
    memory.move(2, 0, 21)
    assert _same(_row(memory, 0, 21), before)
    assert _same(_row(memory, 1, 64), untouched)


@pytest.mark.parametrize("blocks", [[0, 1, 2], [5, 0, 3], [4, 5, 0], [2]])
def test_what_was_kept_is_restored_bit_for_bit(memory, blocks):
    wanted = _row(memory, 1, len(blocks) * BLOCK_TOKENS)
    for place, block in enumerate(blocks):
        memory.keep(1, place * BLOCK_TOKENS, block)
    memory.restore(blocks, 2, 0)
    assert _same(_row(memory, 2, len(blocks) * BLOCK_TOKENS), wanted)


def test_blocks_can_leave_and_come_back(memory):
    memory.keep(1, 0, 4)
    values = memory.export_blocks([4])
    memory.import_block(2, {name: array[0] for name, array in values.items()})
    memory.restore([2], 0, 0)
    assert _same(_row(memory, 0, BLOCK_TOKENS), _row(memory, 1, BLOCK_TOKENS))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("streams", "mebibytes", "plan"),
    [
        (8, 1024, MemoryPlan(rows=8, blocks=8 * 1024 // BLOCK_TOKENS)),
        (8, 512, MemoryPlan(rows=6, blocks=2 * 1024 // BLOCK_TOKENS)),
        (8, 64, MemoryPlan(rows=1, blocks=0)),
        (8, 100, MemoryPlan(rows=1, blocks=576 // BLOCK_TOKENS)),
        (2, 10**6, MemoryPlan(rows=2, blocks=4 * 2 * 1024 // BLOCK_TOKENS)),
    ],
)
def test_a_budget_goes_to_one_row_then_to_the_cache_then_to_more_rows(streams, mebibytes, plan):
    limits = TextLimits(streams=streams, memory_bytes=mebibytes * MIB)
    got = plan_memory(limits, bytes_per_token=64 << 10, row_tokens=1024)  # 64 MiB a row
    assert got == plan


def test_a_budget_for_less_than_one_row_is_refused_with_the_option_to_change():
    with pytest.raises(ConfigurationError, match=r"takes 64 MiB.*--kv-memory"):
        plan_memory(TextLimits(memory_bytes=63 * MIB), bytes_per_token=64 << 10, row_tokens=1024)


@pytest.mark.parametrize("change", [{"streams": 0}, {"queue_limit": 0}])
def test_limits_without_any_room_are_refused(change):
    with pytest.raises(ConfigurationError, match="at least one"):
        TextLimits(**change)
