"""The tokens of a model, as masks: one bit per token, the lowest first."""

from dataclasses import dataclass

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from outpost_runtime.errors import UnsupportedError
from outpost_runtime.text.byte_tokens import byte_tokenizer
from outpost_runtime.text.notation import ConstraintKind, new_matcher, to_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        size: Ids below this one are known to both the tokenizer and the logits.
        text_bits: [ceil(logits / 8)] uint8, one bit per token, the lowest first: 1 for tokens
            that may be part of an answer.
        end_bits: The same for tokens that may end one.
        digit_bits: The same for tokens that begin with a digit.
        by_bytes: For walking a grammar byte by byte.
    """

    tokenizer: LLTokenizer
    size: int
    end_tokens: frozenset[int]
    text_bits: NDArray[np.uint8]
    end_bits: NDArray[np.uint8]
    digit_bits: NDArray[np.uint8]
    by_bytes: LLTokenizer

    @classmethod
    def read(cls, data: bytes, logits: int, end_tokens: frozenset[int]) -> "Vocabulary":
        """Read the bytes of a ``tokenizer.json``; for 262,144 tokens that takes seconds.

        Args:
            logits: How many there are.

        Raises:
            UnsupportedError: There is no end token, or the tokenizer is of another kind.
        """
        ends = sorted(token for token in end_tokens if token < logits)
        if not ends:
            raise UnsupportedError("The model has no end token; no form of an answer can be kept.")
        try:
            tokenizer = LLTokenizer(data.decode("utf-8").lstrip(), eos_token=ends)
        except ValueError as error:
            raise UnsupportedError(
                f"The form of an answer cannot be kept with this model's tokenizer: {error}."
            ) from error
        size = min(logits, tokenizer.vocab_size)
        is_end = np.zeros(logits, np.bool_)
        is_end[ends] = True
        is_text = ~is_end
        is_text[size:] = False
        return cls(
            tokenizer=tokenizer,
            size=size,
            end_tokens=end_tokens,
            text_bits=np.packbits(is_text, bitorder="little"),
            end_bits=np.packbits(is_end, bitorder="little"),
            digit_bits=_mask_of(tokenizer, "[0-9](?s:.*)", logits),
            by_bytes=byte_tokenizer(),
        )


def _mask_of(tokenizer: LLTokenizer, pattern: str, logits: int) -> NDArray[np.uint8]:
    """Return the tokens with which a text of a pattern can begin, one bit each."""
    matcher = new_matcher(tokenizer, to_source(ConstraintKind.REGEX, pattern))
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    bits = np.zeros(-(-logits // 8), np.uint8)
    bits[: len(mask)] = mask[: len(bits)]
    return bits
