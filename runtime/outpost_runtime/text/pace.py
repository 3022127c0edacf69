"""How much of a prompt is read beside the next token of the others. Pure: times come in.

Who decodes waits for the piece of a prompt that shares his step. The piece is cut so
that the step takes at most :data:`STALL` times what decoding alone takes: both speeds
are measured as the engine runs, because they differ by a factor of ten between boxes.
"""

STALL = 2.5
"""A step with a piece of a prompt may take this many times a step without."""

LARGEST_CHUNK = 256
SMALLEST_CHUNK = 16

_WEIGHT = 0.2
_FIRST_CHUNK = 32


class Pace:
    """Moving averages of the two speeds (exponential, weight 0.2)."""

    def __init__(self) -> None:
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def decoded(self, seconds: float) -> None:
        """Take in how long a batch took for its tokens."""
        self._decode_seconds = _average(self._decode_seconds, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """Take in how long a piece of a prompt took."""
        if tokens >= SMALLEST_CHUNK:  # a few tokens take as long as one and say nothing
            self._token_seconds = _average(self._token_seconds, seconds / tokens)

    def chunk(self, *, beside: bool) -> int:
        """Return how many tokens of a prompt to read; ``beside`` says that others decode."""
        if not beside:
            return LARGEST_CHUNK
        if self._decode_seconds is None or self._token_seconds is None:
            return _FIRST_CHUNK
        fitting = int((STALL - 1) * self._decode_seconds / self._token_seconds)
        whole = fitting - fitting % SMALLEST_CHUNK
        return min(max(whole, SMALLEST_CHUNK), LARGEST_CHUNK)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
