"""Guessing the next tokens from the text itself: prompt lookup (Saxena 2023; Yang et al. 2023).

Where the last tokens have stood before, what followed them then may follow now. A
guess costs nothing to make and is verified in one run of the model; it pays only
where answers repeat their prompt or themselves. So a drafter watches what becomes of
its guesses, and falls silent for ever longer while they fail.
"""

from collections.abc import Sequence

LONGEST_DRAFT = 8

_NGRAM = 3
_SHORTEST_DRAFT = 2
_WEIGHT = 0.3
_PAYS = 0.8
"""Accepted tokens per draft below which a verifying run costs more than it saves (measured)."""

_FIRST_PAUSE = 16
_LONGEST_PAUSE = 256


class Drafter:
    """Guesses for one answer."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = _NGRAM
        self._length = 4
        self._yield = 2.0 * _PAYS
        self._silent_until = 0
        self._pause = _FIRST_PAUSE

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        """Return a guess of what follows ``tokens``, perhaps nothing.

        Args:
            tokens: The text so far; the same list as in the last call, grown.
            room: Tokens that a guess may have at most.
        """
        self._index(tokens)
        if len(tokens) < self._silent_until or len(tokens) < _NGRAM:
            return []
        place = self._places.get(tuple(tokens[-_NGRAM:]))
        if place is None:
            return []
        return list(tokens[place : place + min(self._length, room)])

    def judge(self, drafted: int, accepted: int, length: int) -> None:
        """Learn what became of a guess.

        Args:
            length: Tokens of the text now.
        """
        self._yield += _WEIGHT * (accepted - self._yield)
        if accepted == drafted:
            self._length = min(2 * self._length, LONGEST_DRAFT)
        elif accepted < drafted // 2:
            self._length = max(self._length // 2, _SHORTEST_DRAFT)
        if self._yield >= _PAYS:
            self._pause = _FIRST_PAUSE
            return
        self._silent_until = length + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._yield = _PAYS  # one more failure and it falls silent again

    def _index(self, tokens: Sequence[int]) -> None:
        # The end of the text itself is left out: it would only find itself.
        for end in range(self._indexed, len(tokens)):
            self._places[tuple(tokens[end - _NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
