"""llguidance over single bytes: no model's tokens, but every text that a grammar allows."""

from collections.abc import Sequence

import llguidance
from llguidance import LLTokenizer

END_TOKEN = 256


def byte_tokenizer(*, size: int = END_TOKEN + 1, special: Sequence[str] = ()) -> LLTokenizer:
    """Return a tokenizer whose tokens 0 to 255 are the bytes.

    Args:
        size: Tokens in all; those that mean nothing are empty.
        special: Names of special tokens that grammars may use, numbered behind the end token.
    """
    return LLTokenizer(llguidance.TokenizerWrapper(_Bytes(size, special)), slices=[])


class _Bytes:
    """What the library's wrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, size: int, special: Sequence[str]) -> None:
        names = ["<end>", *special]
        self.eos_token_id = END_TOKEN
        self.special_token_ids = list(range(END_TOKEN, END_TOKEN + len(names)))
        self.tokens = [bytes([byte]) for byte in range(256)] + [name.encode() for name in names]
        self.tokens += [b""] * (size - len(self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
