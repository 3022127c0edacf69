"""What goes into the text engine and what comes out of it."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import InvalidInputError, OutpostError
from outpost_runtime.interface import GenerationDefaults
from outpost_runtime.priority import Priority

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256

MAX_LOGIT_BIASES = 1024
MAX_ALTERNATIVES = 20

DEFAULTED_PARAMETERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a bundle has generation defaults for."""

SAMPLING_PARAMETERS = (*DEFAULTED_PARAMETERS, "frequency_penalty", "presence_penalty")

_HIGHEST = 100
_STRONGEST_PENALTY = 10
_STRONGEST_BIAS = 100


@dataclass(kw_only=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter; see ``adapter_shelf.py``.

    Attributes:
        index: Its place in the stacked weights.
        digest: Its bundle's, which keeps its prefixes from all others.
        end_tokens: Ids that end its answers, or None for the base's.
        retired: It is being unloaded: running answers go on, new ones are refused.
    """

    name: str
    index: int
    digest: str
    end_tokens: frozenset[int] | None = None
    retired: bool = False


class Constraint(Protocol):
    """A form that an answer must have: see ``constraint.py``. One request owns it.

    Attributes:
        is_shortened: The answer would have gone on without its limit.
    """

    is_shortened: bool

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits with every token that may not come next at -inf."""

    def afford(self, token: int, room: int) -> int:
        """Return the token, or one that leaves the answer complete within ``room`` tokens."""

    def advance(self, token: int) -> None:
        """Take in the token that was chosen."""

    def accepts(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens of a draft may follow; nothing changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; see ``outpost.v1.GenerationParameters``.

    Raises:
        InvalidInputError: A parameter is outside of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature <= _HIGHEST, f"from 0 to {_HIGHEST}"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= _HIGHEST,
             f"above 0 and at most {_HIGHEST}"),
            ("frequency_penalty", abs(self.frequency_penalty) <= _STRONGEST_PENALTY,
             f"from -{_STRONGEST_PENALTY} to {_STRONGEST_PENALTY}"),
            ("presence_penalty", abs(self.presence_penalty) <= _STRONGEST_PENALTY,
             f"from -{_STRONGEST_PENALTY} to {_STRONGEST_PENALTY}"),
        )  # fmt: skip
        for name, holds, rule in rules:  # a NaN holds no rule
            if not holds:
                raise InvalidInputError(f"{name} is {getattr(self, name):g}; it must be {rule}.")
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidInputError(f"logit_bias has more than {MAX_LOGIT_BIASES} tokens.")
        for token, bias in self.logit_bias:
            if not (token >= 0 and abs(bias) <= _STRONGEST_BIAS):
                raise InvalidInputError(
                    f"logit_bias gives token {token} a bias of {bias:g}; "
                    f"it must be from -{_STRONGEST_BIAS} to {_STRONGEST_BIAS}."
                )

    @property
    def adjusts(self) -> bool:
        """Whether the logits are changed before a token is chosen."""
        return bool(
            self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.logit_bias
        )

    @classmethod
    def of_defaults(cls, defaults: GenerationDefaults) -> "Sampling":
        """Return what a bundle's generation defaults say."""
        return cls(**{name: getattr(defaults, name) for name in DEFAULTED_PARAMETERS})


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """One answer to be generated.

    Attributes:
        prompt_ids: Token ids of the prompt; at least one.
        max_new_tokens: None is as many as the context still holds.
        seed: Ignored when greedy; None lets the engine choose.
        stop: Strings that end the answer and are not part of it.
        alternatives: How many of the likeliest tokens to name beside each chosen one.
        deadline: A time of ``time.monotonic`` after which nobody waits for the answer.
        adapter: What computes the answer beside the base, or None for the base alone.
        constraint: A form that the answer must have; used by this request only.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    log_probabilities: bool = False
    alternatives: int = 0
    deadline: float | None = None
    priority: Priority = Priority.INTERACTIVE
    adapter: Adapter | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InvalidInputError(
                f"max_new_tokens is {self.max_new_tokens}; it must be at least 1."
            )
        if not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise InvalidInputError(
                f"{self.alternatives} alternatives are asked for; at most {MAX_ALTERNATIVES} "
                "can be named."
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidInputError(f"At most {MAX_STOP_STRINGS} stop strings are allowed.")
        if any(not 0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InvalidInputError(f"Stop strings have 1 to {MAX_STOP_LENGTH} characters.")

    def is_late(self, now: float) -> bool:
        """Whether nobody waits for the answer any more at a time of ``time.monotonic``."""
        return self.deadline is not None and now > self.deadline


class FinishReason(enum.Enum):
    """Why an answer ended."""

    END_OF_TEXT = enum.auto()
    STOP_STRING = enum.auto()
    LENGTH = enum.auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """A token was made.

    Attributes:
        text: What can be shown now; empty when the token only began a character.
        log_probability: Natural logarithm, before temperature; None unless asked for.
        alternatives: The likeliest tokens and their log-probabilities, as many as asked for.
    """

    text: str
    token_id: int
    log_probability: float | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishEvent:
    """The answer is complete; nothing follows.

    Attributes:
        text: Rest of the text that had been held back for a stop string or a character.
        cached_tokens: Of the prompt, those whose keys and values were remembered.
        drafted_tokens: Guessed and verified; ``accepted_tokens`` of them were right.
        mean_batch_size: Sequences that shared a run that made a token, on average.
        queue_seconds: From submission to the first run.
        prefill_seconds: From the first run to the first token.
        decode_seconds: From the first token to the last.
    """

    text: str
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    mean_batch_size: float
    seed: int | None
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def first_token_seconds(self) -> float:
        """From submission to the first token."""
        return self.queue_seconds + self.prefill_seconds

    @property
    def seconds_per_token(self) -> float:
        """Mean of the tokens after the first; 0 if there are none."""
        return self.decode_seconds / max(self.generated_tokens - 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailEvent:
    """The answer could not be completed; nothing follows."""

    error: OutpostError


Event = TokenEvent | FinishEvent | FailEvent
