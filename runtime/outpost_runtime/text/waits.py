"""What the client of a text waited for, and what stood in his way: pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from outpost_runtime.latency import Figure, Wait
from outpost_runtime.text.request import FinishEvent
from outpost_runtime.text.scheduler import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """What an engine had to do when a request came.

    Attributes:
        decoding: Answers that were being generated.
        unread: Tokens of prompts that came before it and were still to be read.
    """

    decoding: int = 0
    unread: int = 0


def ahead(sequences: Iterable[Sequence]) -> Ahead:
    """Return what there is to do for some sequences."""
    unread = [sequence.unread for sequence in sequences]
    return Ahead(
        decoding=sum(tokens == 1 for tokens in unread),
        unread=sum(tokens for tokens in unread if tokens > 1),
    )


def waits(before: Ahead, event: FinishEvent, *, others: int) -> Iterator[Wait]:
    """Yield what the client of a complete answer waited for.

    Args:
        before: What there was to do when it came.
        others: Requests that are in the engine beside it at its end.
    """
    read = event.prompt_tokens - event.cached_tokens
    yield first_token(before, read, event.first_token_seconds)
    if event.generated_tokens > 1:
        together = round(event.mean_batch_size)
        yield Wait(
            figure=Figure.TOKEN,
            beside=together + (others >= together),
            work=event.prompt_tokens + event.generated_tokens,
            seconds=event.seconds_per_token,
        )


def first_token(before: Ahead, read: int, seconds: float) -> Wait:
    """Return the wait for a first token, or for how long it was waited for in vain.

    Args:
        read: Tokens of the prompt that had to be read.
    """
    return Wait(
        figure=Figure.FIRST_TOKEN,
        beside=before.decoding,
        work=before.unread + read,
        seconds=seconds,
    )
