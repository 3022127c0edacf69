"""From token ids to text that can be shown: whole characters only, stop strings cut off.

Pure but for the tokenizer's decoder, which comes in as a function. Rules:

1. Fresh tokens are decoded behind others, because some decoders treat the first
   token of a text in their own way (a leading space goes).
2. Text that ends in U+FFFD may be the beginning of a character and waits; what
   stands before it does not. A token may end one character and begin another.
3. After four tokens without progress no character is coming: UTF-8 has at most
   four bytes in one, and U+FFFD is shown.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS_OF_A_CHARACTER = 4
_CONTEXT_TOKENS = 16
_LONGEST_WINDOW = 64


class TextAssembler:
    """The text of one answer, as it grows.

    Args:
        decode: Token ids to text, special tokens left out.
        prompt_ids: The prompt; its end decides how the first token reads.
        stop: Strings that end the answer and are not part of it.
    """

    def __init__(self, decode: Decode, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = stop
        self._window = list(prompt_ids[-2 * _CONTEXT_TOKENS :])
        self._shown = 0
        self._idle = 0
        self._held = ""
        self.stopped = False
        self._shorten_window()

    def add(self, token: int) -> str:
        """Take one more token; return the text that is certain now, perhaps none."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = text.rstrip(_UNFINISHED)
        if len(whole) <= self._shown and text != whole:
            self._idle += 1
            if self._idle < _MOST_TOKENS_OF_A_CHARACTER:
                return ""
            whole = text
        self._idle = 0
        fresh, self._shown = whole[self._shown :], len(whole)
        if whole == text and len(self._window) > _LONGEST_WINDOW:
            self._shorten_window()
        return self._release(fresh)

    def finish(self) -> str:
        """Return the text that was held back; an unfinished character becomes U+FFFD."""
        text = self._release(self._decode(self._window)[self._shown :])
        return text if self.stopped else text + self._held

    def _shorten_window(self) -> None:
        # A window must not begin inside of a character: everything after would decode otherwise.
        first = max(0, len(self._window) - _CONTEXT_TOKENS)
        for start in range(first, max(first - _MOST_TOKENS_OF_A_CHARACTER, 0) - 1, -1):
            text = self._decode(self._window[start:])
            if not text.startswith(_UNFINISHED):
                self._window, self._shown = self._window[start:], len(text)
                return
        self._shown = len(self._decode(self._window))

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
