"""What an answer may cost: a lowest rate against servers that drip, a highest number of bytes.

Only the time that passes while we wait for the server counts: whoever reads slowly
himself, as under a bandwidth cap, does not accuse the server.
"""

from dataclasses import dataclass

from outpost_runtime.errors import FetchError


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a server may take.

    Attributes:
        connect_seconds: Until it accepts a connection, and once more until TLS stands.
        silence_seconds: Without a single byte.
        window_seconds: Over which the rate is judged.
        least_rate: Bytes a second that must come in every window. 512 is far below the
            slowest mobile network; nobody who drips below it ever finishes a block.
    """

    connect_seconds: float = 10.0
    silence_seconds: float = 20.0
    window_seconds: float = 30.0
    least_rate: float = 512.0


class Meter:
    """Watches what comes from one server.

    Args:
        label: The server, for messages.
    """

    def __init__(self, label: str, patience: Patience) -> None:
        self._label = label
        self._patience = patience
        self._rest = 0
        self._first = True
        self._bytes = 0
        self._seconds = 0.0

    def begin(self, allowance: int) -> None:
        """Start with a new answer of at most so many bytes, headers and framing included."""
        self._rest = allowance
        self._first = True
        self._restart()

    def add(self, count: int, seconds: float) -> None:
        """Count what came, and how long we waited for it.

        Raises:
            FetchError: It is too slow, or too much.
        """
        self._rest -= count
        if self._rest < 0:
            raise FetchError(f"{self._label} sends without an end.", retry_after=float("inf"))
        if self._first:  # a server may think before it answers; the silence is bounded
            self._first = False
            return
        self._bytes += count
        self._seconds += seconds
        if self._seconds < self._patience.window_seconds:
            return
        if self._bytes < self._patience.least_rate * self._seconds:
            rate = self._bytes / self._seconds
            raise FetchError(f"{self._label} is too slow: {rate:.0f} bytes a second.")
        self._restart()

    def _restart(self) -> None:
        self._bytes, self._seconds = 0, 0.0
