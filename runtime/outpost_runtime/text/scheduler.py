"""What the text engine runs next. Pure: no clock, no thread, no tensor.

Requests wait in one queue and live, one after another, in the decoder's slot:
first their prompt is read chunk by chunk, then one token is made per run.
Between any two runs a request can be dropped.
"""

from collections import deque
from dataclasses import dataclass, field

from outpost_runtime.errors import BusyError
from outpost_runtime.text.request import TextRequest


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """A request and how far it has come.

    Attributes:
        token_ids: Prompt and answer so far.
        stored: Leading tokens of ``token_ids`` whose keys and values the slot holds.
    """

    request: TextRequest
    token_ids: list[int] = field(init=False)
    stored: int = 0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefill:
    """Read the next ``count`` tokens of a prompt; ``last`` when they are the last of it."""

    sequence: Sequence
    slot: int
    count: int
    last: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """Append the newest token of a sequence and get the next."""

    sequence: Sequence
    slot: int


Step = Prefill | Decode


class Scheduler:
    """The queue and the slot.

    Args:
        queue_limit: Requests that may wait.
        chunk: Most prompt tokens per run.
    """

    def __init__(self, *, queue_limit: int, chunk: int) -> None:
        self._queue_limit = queue_limit
        self._chunk = chunk
        self._waiting: deque[Sequence] = deque()
        self._live: Sequence | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run."""
        return self._live is None and not self._waiting

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue.

        Raises:
            BusyError: The queue is full.
        """
        if len(self._waiting) >= self._queue_limit:
            raise BusyError(
                f"{len(self._waiting)} requests are waiting already.",
                hint="Try again in a few seconds.",
            )
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; one that is gone already stays gone."""
        if self._live is sequence:
            self._live = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def plan(self) -> Step | None:
        """Return what to run now, or None when there is nothing."""
        if self._live is None and self._waiting:
            self._live = self._waiting.popleft()
        if self._live is None:
            return None
        unread = len(self._live.request.prompt_ids) - self._live.stored
        if unread > 0:
            count = min(unread, self._chunk)
            return Prefill(sequence=self._live, slot=0, count=count, last=count == unread)
        return Decode(sequence=self._live, slot=0)
