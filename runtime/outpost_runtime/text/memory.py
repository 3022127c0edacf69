"""Key/value memory: a row for every sequence that lives, and blocks for what may come again.

Everything is allocated once and touched once: a page fault inside of a run costs
more than the run's work. One array per layer and kind holds all rows, so that the
leading rows are a batch without a copy; another holds the blocks of the prefix
cache. Which row and which block is decided elsewhere (``scheduler.py``,
``prefix_cache.py``); here numbers become copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.tensors import Allocate, Array, TensorSpec
from outpost_runtime.text.limits import TextLimits

BLOCK_TOKENS = 16
"""Tokens of one block. Few, so that little of a known prompt has to be read again."""

_CACHE_SHARE = 0.25
"""Of a memory budget, kept for the prefix cache while there are rows to give up for it."""

ROWS_REMEMBERED = 4
"""Prompts remembered for each row, at most: nobody comes back for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What a budget is spent on: rows for sequences, blocks for prefixes."""

    rows: int
    blocks: int


def plan_memory(limits: TextLimits, *, bytes_per_token: int, row_tokens: int) -> MemoryPlan:
    """Divide a budget: first one row, then the cache's share, then the other rows.

    Args:
        bytes_per_token: Of one sequence, all layers together.
        row_tokens: Tokens of a row: the bundle's context.

    Raises:
        ConfigurationError: Not even one row fits.
    """
    row_bytes = bytes_per_token * row_tokens
    if row_bytes > limits.memory_bytes:
        raise ConfigurationError(
            f"One sequence of {row_tokens} tokens takes {row_bytes >> 20} MiB of key/value memory; "
            f"the budget is {limits.memory_bytes >> 20} MiB.",
            hint="Allow more with --kv-memory, or build the bundle with a smaller context_length.",
        )
    for_rows = limits.memory_bytes * (1 - _CACHE_SHARE)
    rows = max(1, min(limits.streams, int(for_rows // row_bytes)))
    rest = limits.memory_bytes - rows * row_bytes
    most = ROWS_REMEMBERED * rows * row_tokens
    return MemoryPlan(rows=rows, blocks=min(rest // bytes_per_token, most) // BLOCK_TOKENS)


class KeyValueMemory:
    """Rows and blocks of all layers.

    Args:
        specs: The decoder's ``past_key_values.*`` inputs, [batch, heads, length, head_dim].
        rows: Sequences.
        row_tokens: Tokens of a row.
        blocks: Of :data:`BLOCK_TOKENS` tokens; 0 for no prefix cache.
        allocate: Of the rows, which a session binds.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        *,
        rows: int,
        row_tokens: int,
        blocks: int,
        allocate: Allocate = np.zeros,
    ) -> None:
        self.blocks = blocks
        # Filled with ones: it writes every page.
        self._rows: dict[str, Array] = {}
        self._blocks: dict[str, Array] = {}
        for spec in specs:
            _, heads, _, size = spec.shape
            assert heads is not None and size is not None  # noqa: PT018, S101 - the decoder checked
            self._rows[spec.name] = allocate((rows, heads, row_tokens, size), spec.dtype)
            self._rows[spec.name].fill(1)
            block_tokens = blocks * BLOCK_TOKENS
            self._blocks[spec.name] = np.ones((heads, block_tokens, size), spec.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(a.nbytes for a in (*self._rows.values(), *self._blocks.values()))

    def rows(self, first: int, last: int) -> Mapping[str, Array]:
        """Return the memory of rows ``first`` to ``last`` - 1 by the graph's input names."""
        return {name: array[first:last] for name, array in self._rows.items()}

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row over another row's."""
        for array in self._rows.values():
            array[target, :, :tokens] = array[source, :, :tokens]

    def keep(self, row: int, first_token: int, block: int) -> None:
        """Copy the tokens of a row from ``first_token`` on into a block."""
        here = slice(first_token, first_token + BLOCK_TOKENS)
        for name, array in self._rows.items():
            _block(self._blocks[name], block)[:] = array[row, :, here]

    def restore(self, blocks: Sequence[int], row: int, first_token: int) -> None:
        """Copy blocks, one behind the other, into a row from ``first_token`` on."""
        place = first_token
        for first, last in _runs(blocks):  # most often neighbours: one copy instead of many
            count = (last - first) * BLOCK_TOKENS
            there = slice(first * BLOCK_TOKENS, last * BLOCK_TOKENS)
            for name, array in self._rows.items():
                array[row, :, place : place + count] = self._blocks[name][:, there]
            place += count

    def export_blocks(self, blocks: Sequence[int]) -> dict[str, Array]:
        """Return copies of blocks: [blocks, heads, BLOCK_TOKENS, head_dim] by input name."""
        return {
            name: np.stack([_block(array, number) for number in blocks])
            for name, array in self._blocks.items()
        }

    def block_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return [heads, BLOCK_TOKENS, head_dim] by input name."""
        return {
            name: (array.shape[0], BLOCK_TOKENS, array.shape[2])
            for name, array in self._blocks.items()
        }

    def import_block(self, block: int, values: Mapping[str, NDArray[np.generic]]) -> None:
        """Fill a block with [heads, BLOCK_TOKENS, head_dim] by input name."""
        for name, array in self._blocks.items():
            _block(array, block)[:] = values[name]

    def close(self) -> None:
        """Free everything."""
        self._rows.clear()
        self._blocks.clear()


def _block(array: Array, number: int) -> Array:
    return array[:, number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS]


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Return neighbours as (first, last + 1)."""
    if not blocks:
        return []
    breaks = [i for i, (a, b) in enumerate(pairwise(blocks), 1) if b != a + 1]
    edges = [0, *breaks, len(blocks)]
    return [(blocks[a], blocks[b - 1] + 1) for a, b in pairwise(edges)]
