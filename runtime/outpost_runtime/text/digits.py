"""Numbers that end. A small model that may write digits for ever often does.

JSON sets no limit, and neither do most schemas. After as many digits as any number that
programs exchange has, more are allowed only where nothing else may follow.
"""

from typing import Final

LONGEST: Final = 20
"""Digits in a row, before or behind the point: those of the largest 64-bit integer."""

LONGEST_EXPONENT: Final = 2
"""With 20 digits before it, still a 64-bit floating-point number."""

_DIGITS = frozenset(b"0123456789")
_QUOTE, _BACKSLASH = b'"\\'


class Digits:
    """Counts the digits at the end of an answer in JSON, outside of its strings."""

    def __init__(self) -> None:
        self._in_string = self._escaped = self._in_exponent = False
        self._count = 0

    @property
    def are_enough(self) -> bool:
        """Whether another digit would make the number too long."""
        return self._count >= (LONGEST_EXPONENT if self._in_exponent else LONGEST)

    def take(self, text: bytes) -> None:
        """Take in what the answer goes on with; it may end inside of a character."""
        for byte in text:
            if self._in_string:
                self._in_string = byte != _QUOTE or self._escaped
                self._escaped = byte == _BACKSLASH and not self._escaped
            elif byte in _DIGITS:
                self._count += 1
            else:
                self._count = 0
                self._in_string = byte == _QUOTE
                self._in_exponent = byte in b"eE" or (self._in_exponent and byte in b"+-")
