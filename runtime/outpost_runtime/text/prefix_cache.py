"""Which beginnings of texts are remembered, and in which blocks. Pure: no tensor, no clock.

A block holds the keys and values of :data:`BLOCK_TOKENS` tokens, and what they are
depends on everything before them. So blocks form a tree, and a block is found by
its parent and its own tokens. Rules:

1. A tree's root is the digest of the bundle and that of the adapter: what one
   computed can never be found by another. Tokens are compared themselves, not hashes.
2. Only whole blocks are kept, and always with all their ancestors.
3. When room is needed, the least recently used block without children goes. Using a
   block uses its ancestors after it, so the oldest block never has children.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outpost_runtime.text.memory import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Root:
    """What computed the keys and values: digests of the bundle and of its adapter, if any."""

    bundle: str = ""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class _Key:
    parent: "Root | int"
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptBlock:
    """A block of the tree; ``parent`` is the number of another block, or the root."""

    number: int
    parent: Root | int
    tokens: tuple[int, ...]


class PrefixCache:
    """The tree of remembered blocks.

    Args:
        blocks: Blocks that can be kept; numbers run from 0.
    """

    def __init__(self, blocks: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))
        self._numbers: OrderedDict[_Key, int] = OrderedDict()
        self.capacity = blocks

    def __len__(self) -> int:
        return len(self._numbers)

    def match(self, root: Root, tokens: Sequence[int], *, behind: int = 0) -> list[int]:
        """Return the blocks that follow the first ``behind`` tokens, as far as they are known.

        The last token is never among them: a run over it gives the next token's logits.

        Args:
            behind: A multiple of :data:`BLOCK_TOKENS`; anything else finds nothing.
        """
        if behind % BLOCK_TOKENS:
            return []
        keys = self._known(root, tokens[:-1])
        self._use(keys)
        return [self._numbers[key] for key in keys[behind // BLOCK_TOKENS :]]

    def add(self, root: Root, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Remember the whole blocks of ``tokens``.

        Returns:
            (block, first token) of each block that the caller must fill now; fewer than
            there are when a text alone is longer than the cache.
        """
        keys = self._known(root, tokens)
        self._use(keys)
        chain, new = set(keys), []
        parent: Root | int = self._numbers[keys[-1]] if keys else root
        for first in range(len(keys) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            number = self._take(chain)
            if number is None:
                break
            key = _Key(parent, tuple(tokens[first : first + BLOCK_TOKENS]))
            self._numbers[key] = number
            chain.add(key)
            keys.append(key)
            new.append((number, first))
            parent = number
        self._use(keys)
        return new

    def forget(self, adapter: str) -> None:
        """Drop everything that an adapter has computed."""
        dropped: set[Root | int] = set()
        # A parent's number may be lower or higher than its child's, so look until none is left.
        while gone := [k for k in self._numbers if _of(k.parent, adapter) or k.parent in dropped]:
            for key in gone:
                number = self._numbers.pop(key)
                dropped.add(number)
                self._free.append(number)

    def kept(self) -> Iterator[KeptBlock]:
        """Yield all blocks, parents before their children, the longest unused first otherwise."""
        waiting = OrderedDict((number, key) for key, number in self._numbers.items())
        told: set[int] = set()
        while waiting:
            for number, key in list(waiting.items()):
                if isinstance(key.parent, Root) or key.parent in told:
                    yield KeptBlock(number=number, parent=key.parent, tokens=key.tokens)
                    told.add(number)
                    del waiting[number]

    def _known(self, root: Root, tokens: Sequence[int]) -> list[_Key]:
        found: list[_Key] = []
        parent: Root | int = root
        for first in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = _Key(parent, tuple(tokens[first : first + BLOCK_TOKENS]))
            number = self._numbers.get(key)
            if number is None:
                break
            found.append(key)
            parent = number
        return found

    def _use(self, keys: Sequence[_Key]) -> None:
        for key in reversed(keys):
            self._numbers.move_to_end(key)

    def _take(self, chain: set[_Key]) -> int | None:
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._numbers), None)
        if oldest is None or oldest in chain:
            return None
        return self._numbers.pop(oldest)


def _of(parent: Root | int, adapter: str) -> bool:
    return isinstance(parent, Root) and parent.adapter == adapter
