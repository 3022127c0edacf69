"""From token ids to text that can be shown: whole characters only, stop strings cut off.

Pure but for the tokenizer's decoder, which comes in as a function.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT_TOKENS = 4
"""Tokens before the answer that decide how its first token reads."""

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS_OF_A_CHARACTER = 4


class TextAssembler:
    """The text of one answer, as it grows.

    Args:
        decode: Token ids to text, special tokens left out.
        context: The last tokens of the prompt.
        stop: Strings that end the answer and are not part of it.
    """

    def __init__(self, decode: Decode, context: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._context = list(context)
        self._stop = stop
        self._fresh: list[int] = []
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one more token; return the text that is certain now, perhaps none."""
        self._fresh.append(token)
        text = self._fresh_text()
        if text.endswith(_UNFINISHED) and len(self._fresh) < _MOST_TOKENS_OF_A_CHARACTER:
            return ""
        self._context, self._fresh = self._fresh, []
        return self._release(text)

    def finish(self) -> str:
        """Return the text that was held back; an unfinished character becomes U+FFFD."""
        text = self._release(self._fresh_text() if self._fresh else "")
        return text if self.stopped else text + self._held

    def _fresh_text(self) -> str:
        # Some decoders treat the first token of a text in their own way (a leading space goes),
        # so fresh tokens are always decoded behind others.
        before = self._decode(self._context)
        return self._decode([*self._context, *self._fresh])[len(before) :]

    def _release(self, text: str) -> str:
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._held[: min(places)]
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain = len(self._held) - keep
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` with which ``stop`` could begin."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
