"""What goes into the text engine and what comes out of it."""

import enum
from dataclasses import dataclass

from outpost_runtime.errors import InvalidInputError, OutpostError
from outpost_runtime.interface import GenerationDefaults

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256

SAMPLING_PARAMETERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_HIGHEST = 100


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

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature <= _HIGHEST, f"from 0 to {_HIGHEST}"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= _HIGHEST,
             f"above 0 and at most {_HIGHEST}"),
        )  # fmt: skip
        for name, holds, rule in rules:  # a NaN holds no rule
            if not holds:
                raise InvalidInputError(f"{name} is {getattr(self, name):g}; it must be {rule}.")

    @classmethod
    def of_defaults(cls, defaults: GenerationDefaults) -> "Sampling":
        """Return what a bundle's generation defaults say."""
        return cls(**{name: getattr(defaults, name) for name in SAMPLING_PARAMETERS})


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """One answer to be generated.

    Attributes:
        prompt_ids: Token ids of the prompt; at least one.
        max_new_tokens: None is as many as the context still holds.
        seed: Ignored when greedy; None lets the engine choose.
        stop: Strings that end the answer and are not part of it.
        deadline: A time of ``time.monotonic`` after which nobody waits for the answer.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    log_probabilities: bool = False
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InvalidInputError(
                f"max_new_tokens is {self.max_new_tokens}; it must be at least 1."
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidInputError(f"At most {MAX_STOP_STRINGS} stop strings are allowed.")
        if any(not 0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InvalidInputError(f"Stop strings have 1 to {MAX_STOP_LENGTH} characters.")


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
    """

    text: str
    token_id: int
    log_probability: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishEvent:
    """The answer is complete; nothing follows.

    Attributes:
        text: Rest of the text that had been held back for a stop string or a character.
        queue_seconds: From submission to the first run.
        prefill_seconds: From the first run to the first token.
        decode_seconds: From the first token to the last.
    """

    text: str
    reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    seed: int | None
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FailEvent:
    """The answer could not be completed; nothing follows."""

    error: OutpostError


Event = TokenEvent | FinishEvent | FailEvent
