"""What all engines are given: the same token ids, cut from the exporter's evaluation text."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import outpost_export
from outpost_runtime.tokenizer import Tokenizer

PROMPT_TOKENS = 32
PREFIX_TOKENS = 1000
TAIL_TOKENS = 8

_FIRST_MARKER = 1000
"""A token id; it and those behind it are whole words and pieces of words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Token ids of a text, beginning of text first."""

    ids: list[int]
    tokenizer: Tokenizer
    _markers: Iterator[int] = field(default_factory=lambda: itertools.count(_FIRST_MARKER))

    def prompts(self, count: int) -> list[list[int]]:
        """Return short prompts for as many streams, each from another part of the text."""
        start, *text = self.ids
        length = PROMPT_TOKENS - 1
        return [[start, *text[length * index :][:length]] for index in range(count)]

    def texts(self, count: int) -> list[str]:
        """Return the same prompts as text."""
        return [self.tokenizer.decode(prompt[1:]) for prompt in self.prompts(count)]

    def unseen(self, length: int) -> list[int]:
        """Return a prompt that no engine can have read: its second token is new every time."""
        start, *text = self.ids
        return [start, next(self._markers), *text[: length - 2]]

    def tails(self) -> tuple[list[int], list[int]]:
        """Return two different continuations for a prompt of :data:`PREFIX_TOKENS`."""
        first, second = PREFIX_TOKENS, PREFIX_TOKENS + TAIL_TOKENS
        return self.ids[first:][:TAIL_TOKENS], self.ids[second:][:TAIL_TOKENS]


def read_material(checkpoint: Path) -> Material:
    """Tokenize the exporter's evaluation text with a checkpoint's tokenizer."""
    text = Path(outpost_export.__file__).with_name("evaluation_text.txt").read_text("utf-8")
    tokenizer = Tokenizer((checkpoint / "tokenizer.json").read_bytes())
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert len(ids) >= PREFIX_TOKENS + 2 * TAIL_TOKENS
    return Material(ids=ids, tokenizer=tokenizer)
