"""How an answer in JSON can still be completed, when its limit comes near.

The limit of an answer cuts it anywhere, and half of a JSON text is of no use. So from some way
before the limit on, no token is taken after which the answer could not be completed any more:
the one that begins its shortest known completion is taken instead. As long as an answer fits
once, it fits until its end.

The completion is found by walking the grammar byte by byte, at each place by the byte that
most likely closes something: some microseconds per byte. It is short, not the shortest, and
a pattern can lead the walk astray; then nothing is changed and the limit cuts as ever.
"""

from typing import Final

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

_LONGEST: Final = 1024
"""Bytes of a completion that is worth looking for."""

_CLOSING_FIRST: Final = b'}]":,0123456789ntfabcdeghijklmopqrsuvwxyz'
_BRACKETS: Final = b"}]"
_OPENING_LAST: Final = b"-[{\\"
_STRING_BYTES: Final = 64
"""Where so many bytes of ASCII may follow, among them a quotation mark, a string is open."""

_QUOTE: Final = ord('"')
_REPEATED: Final = 100


def _ranks() -> NDArray[np.int64]:
    """Return for every byte how late it is tried."""
    ranks = np.full(256, 3 * _REPEATED)  # other languages' characters: several bytes each
    ranks[32:127] = _REPEATED // 2
    ranks[list(_CLOSING_FIRST)] = range(len(_CLOSING_FIRST))
    ranks[list(_OPENING_LAST)] = range(2 * _REPEATED, 2 * _REPEATED + len(_OPENING_LAST))
    return ranks


_RANKS: Final = _ranks()


class Closing:
    """Follows one answer, and completes it. One thread at a time may use it.

    Args:
        matcher: A grammar of JSON over single bytes; see ``byte_tokens.py``.
        tokenizer: The model's.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._unread = bytearray()

    def take(self, token: int) -> None:
        """Take in the token that the answer goes on with."""
        self._unread += self._tokenizer.decode_bytes([token])

    def rest(self, token: int | None = None) -> list[int] | None:
        """Return tokens that complete the answer, or None if none are known.

        Args:
            token: What would come first; without it, the completion of what there is.
        """
        self._matcher.consume_tokens(list(self._unread))
        self._unread.clear()
        matcher = self._matcher.deep_copy()
        if token is not None:
            matcher.consume_tokens(list(self._tokenizer.decode_bytes([token])))
        text = _completion(matcher)
        return None if text is None else self._tokens(text)

    def _tokens(self, text: bytes) -> list[int]:
        whole = text.lstrip(bytes(range(0x80, 0xC0)))  # the rest of a character that was begun
        begun = text[: len(text) - len(whole)]
        tokens = [id_ for byte in begun for id_ in self._tokenizer.tokenize_bytes(bytes([byte]))]
        # Greedily, by the tokens' own bytes: the model's tokenizer would make a special token
        # of a text that spells one.
        return tokens + self._tokenizer.greedy_tokenize(whole.decode())


def _completion(matcher: LLMatcher) -> bytes | None:
    text = bytearray()
    while not matcher.is_error() and len(text) <= _LONGEST:
        if matcher.is_accepting():
            return bytes(text)
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256])
        if not len(allowed):
            return None
        byte = _best(allowed, text[-1:])
        matcher.consume_token(byte)
        text.append(byte)
    return None


def _best(allowed: NDArray[np.int64], previous: bytearray) -> int:
    if _QUOTE in allowed and np.count_nonzero(allowed < 128) > _STRING_BYTES:  # noqa: PLR2004
        return _QUOTE
    ranks = _RANKS[allowed]
    if previous and previous[0] not in _BRACKETS:  # or a pattern such as a+b would have no end
        ranks = ranks + _REPEATED * (allowed == previous[0])
    return int(allowed[ranks.argmin()])
