"""Tokenizers of bundles: ``tokenizer.json``, read by Hugging Face's tokenizers library."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from outpost_runtime.errors import BundleError

MAX_TEXT_CHARACTERS = 1 << 20
"""Longest text that is tokenized; longer ones fit into no context that we serve."""


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads.

    Raises:
        BundleError: The file is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer: {error}.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text, with or without the markers that the model expects."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
