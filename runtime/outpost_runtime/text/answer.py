"""One answer as it grows: which token comes next, what can be shown, whether it has ended.

Pure but for the tokenizer's decoder and the constraint's masks, which come in from
outside. The same request with the same seed and the same logits makes the same
answer, whatever else is in the batch: every token takes exactly one random number.
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.text import sampler
from outpost_runtime.text.assembler import Decode, TextAssembler
from outpost_runtime.text.request import FinishReason, TextRequest, TokenEvent


class Answer:
    """The answer to one request.

    Args:
        decode_text: Token ids to text, special tokens left out.
        end_tokens: Ids that end an answer.
        limit: Tokens that it may have.
    """

    def __init__(
        self,
        request: TextRequest,
        *,
        decode_text: Decode,
        end_tokens: frozenset[int],
        limit: int,
    ) -> None:
        self._request = request
        self._end_tokens = end_tokens
        self._limit = limit
        self._assembler = TextAssembler(decode_text, request.prompt_ids, request.stop)
        greedy = request.sampling.temperature == 0
        self.seed = None if greedy else _seed(request.seed)
        self._random = random.Random(self.seed)  # noqa: S311 - for sampling, not for secrets
        self._count = 0
        self._made: Counter[int] = Counter()
        self._seen = set(request.prompt_ids) if request.sampling.repetition_penalty != 1 else set()
        self.reason: FinishReason | None = None

    def take(self, logits: NDArray[np.float32]) -> TokenEvent | None:
        """Choose the next token from [vocabulary] logits; sets :attr:`reason` at the end.

        Returns:
            The token, or None when it was one that ends the answer.
        """
        request = self._request
        history = sampler.History(seen=self._seen, made=self._made)
        adjusted = sampler.adjust(logits, request.sampling, history)
        if request.constraint is not None:
            adjusted = request.constraint.apply(adjusted)
        token = sampler.choose(adjusted, request.sampling, self._random.random())
        if request.constraint is not None:
            token = request.constraint.afford(token, self.room)
            request.constraint.advance(token)
        if token in self._end_tokens:
            cut = request.constraint is not None and request.constraint.is_shortened
            self.reason = FinishReason.LENGTH if cut else FinishReason.END_OF_TEXT
            return None
        text = self._append(token)
        return TokenEvent(
            text=text,
            token_id=token,
            log_probability=self._log_probability(logits, token),
            alternatives=sampler.likeliest(logits, request.alternatives),
        )

    def finish(self) -> str:
        """Return the text that was held back, after :attr:`reason` has been set."""
        if self._assembler.stopped:
            return ""
        rest = self._assembler.finish()
        if self._assembler.stopped:
            self.reason = FinishReason.STOP_STRING
        return rest

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self._limit - self._count

    def _append(self, token: int) -> str:
        self._count += 1
        self._made[token] += 1
        self._seen.add(token)
        text = self._assembler.add(token)
        if self._assembler.stopped:
            self.reason = FinishReason.STOP_STRING
        elif self.room <= 0:
            self.reason = FinishReason.LENGTH
        return text

    def _log_probability(self, logits: NDArray[np.float32], token: int) -> float | None:
        wanted = self._request.log_probabilities
        return sampler.log_probability(logits, token) if wanted else None


def acceptable(request: TextRequest, draft: Sequence[int]) -> list[int]:
    """Return the beginning of a draft that the request's constraint allows."""
    if request.constraint is None:
        return list(draft)
    return list(draft[: request.constraint.accepts(draft)])


def _seed(requested: int | None) -> int:
    return random.SystemRandom().getrandbits(63) if requested is None else requested
