"""Tokenizers of bundles: ``tokenizer.json``, read by Hugging Face's tokenizers library."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from outpost_runtime.errors import BundleError

MAX_TEXT_CHARACTERS = 1 << 20
"""Longest text that is tokenized; longer ones fit into no context that we serve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A text as a model reads it; ``truncated`` when it was longer than allowed."""

    ids: tuple[int, ...]
    truncated: bool


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads.

    Args:
        data: A ``tokenizer.json``; what it says of padding and truncation is not used.
        max_tokens: Longer texts are cut, markers kept, by :meth:`encode_cut`; None: never.

    Raises:
        BundleError: The file is not a tokenizer.
    """

    def __init__(self, data: bytes, *, max_tokens: int | None = None) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"tokenizer.json is not a tokenizer: {error}.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_tokens is not None:
            self._tokenizer.enable_truncation(max_tokens)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text, with or without the markers that the model expects."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_cut(self, text: str) -> Encoded:
        """Return the token ids of a text with its markers, at most ``max_tokens``."""
        encoding = self._tokenizer.encode(text)
        return Encoded(ids=tuple(encoding.ids), truncated=bool(encoding.overflowing))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
