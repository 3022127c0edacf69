"""Answers in a form that the client chose: a JSON schema, a regular expression, a grammar.

Which tokens may come next is llguidance's to say (https://github.com/guidance-ai/llguidance):
an Earley parser over derivatives of regular expressions, walked along a tree of all
tokens. Around it stand these rules:

1. What came from outside is compiled on trial first: see ``trials.py``.
2. A compiled grammar is touched by one worker thread only, so never by two at once,
   and every mask is computed there while the model runs.
3. End tokens are ours: allowed where the text so far is complete (or where a grammar
   names one and nothing else may follow), never inside of a text, whatever they spell.
   The library allows them after a failure too, so every step looks for failures.
4. JSON is compact. A model that is not sure likes to write spaces until its limit.
5. JSON ends: its numbers do (``digits.py``), and near its limit all that is open is closed
   (``closing.py``).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from outpost_runtime import heap
from outpost_runtime.errors import ExecutionError
from outpost_runtime.text.closing import Closing
from outpost_runtime.text.digits import Digits
from outpost_runtime.text.notation import (
    ConstraintKind,
    new_matcher,
    refusal,
    to_source,
)
from outpost_runtime.text.trials import TRIAL_SECONDS, Trials, closing
from outpost_runtime.text.vocabulary import Vocabulary

__all__ = ["Constraint", "ConstraintCompiler", "ConstraintKind"]

# What a byte of eight tokens' bits means for their logits: at most infinity, or minus infinity.
_CEILINGS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(np.inf),
    np.float32(-np.inf),
)

_WATCHED_TOKENS = 64
"""That an answer may have beyond what would complete it: from then on every token is watched."""

_GROWTH = 4
"""Before that, how much one token may add to what would complete it, over a stretch."""

T = TypeVar("T")


class ConstraintCompiler:
    """Turns schemas, regular expressions and grammars into constraints over a model's tokens.

    Safe to use from several threads. The tokenizer is read with the first constraint: for
    262,144 tokens that takes seconds and about 230 MB.

    Args:
        read_tokenizer: Gives a ``tokenizer.json`` with a byte-level or byte-fallback decoder.
        vocabulary_size: How many logits there are; tokens that the tokenizer does not know are
            never allowed.
        end_tokens: Ids that end an answer.
        trial_seconds: Processor time that compiling may take before it is given up.
    """

    def __init__(
        self,
        read_tokenizer: Callable[[], bytes],
        *,
        vocabulary_size: int,
        end_tokens: frozenset[int],
        trial_seconds: float = TRIAL_SECONDS,
    ) -> None:
        self._read_tokenizer = read_tokenizer
        self._vocabulary_size = vocabulary_size
        self._end_tokens = end_tokens
        self._vocabulary: Vocabulary | None = None
        self._reading = threading.Lock()
        self._trials = Trials(trial_seconds)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="constraint")

    def knows(self, kind: ConstraintKind, text: str) -> bool:
        """Whether :meth:`compile` need not wait for a trial, its own or others'; at once."""
        return self._trials.knows(kind, text)

    def compile(self, kind: ConstraintKind, text: str) -> "Constraint":
        """Return the constraint of one answer; its first mask is being computed already.

        Takes milliseconds, seconds at most, and longer the first time.

        Raises:
            InvalidInputError: The text is wrong, and where; or it is too long or too complex.
            UnsupportedError: The model's tokenizer is of a kind that cannot be constrained.
            BusyError: The process for trials could not be started.
            UnavailableError: The compiler is closed.
        """
        source = to_source(kind, text)
        vocabulary = self._read_vocabulary()
        self._trials.run(kind, text, source, vocabulary.tokenizer)
        matcher = new_matcher(vocabulary.tokenizer, source)
        if matcher.is_error():
            raise refusal(kind, matcher.get_error(), place="")
        closing = None
        if kind is ConstraintKind.JSON_SCHEMA:
            closing = Closing(new_matcher(vocabulary.by_bytes, source), vocabulary.tokenizer)
        return Constraint(matcher, vocabulary, self._worker, closing)

    def close(self) -> None:
        """End the worker thread and the process for trials; constraints stop working."""
        self._trials.close()
        self._worker.shutdown()

    def _read_vocabulary(self) -> "Vocabulary":
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary.read(
                    self._read_tokenizer(), self._vocabulary_size, self._end_tokens
                )
                heap.trim()  # of the 400 MB that reading Gemma's has taken, 180 go back
            return self._vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class _Next:
    """What may follow: an end, or (``complete``) nothing else."""

    may_end: bool
    complete: bool


class Constraint:
    """How far one answer has come in its form. One request owns it; it is not thread-safe."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        worker: ThreadPoolExecutor,
        closing: Closing | None,
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._worker = worker
        self._digits = Digits() if closing else None
        self._closing = closing
        self._look_at: int | None = None
        self.is_shortened = False
        # Belongs to the worker while a step is pending, to the owner otherwise.
        self._ceilings = np.empty((len(vocabulary.text_bits), 8), np.float32)
        self._next = self._submit(self._compute)

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow; waits for the mask.

        Raises:
            ExecutionError: See :meth:`apply`.
        """
        return self._next.result().complete

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits with every token that may not come next at -inf; waits for the mask.

        Args:
            logits: [vocabulary], as many as the compiler was told; not changed.

        Raises:
            ExecutionError: The library failed or gave up, or no token of this model can
                continue the answer.
        """
        self._next.result()
        allowed: NDArray[np.float32] = np.minimum(logits, self._ceilings.ravel()[: len(logits)])
        return allowed

    def advance(self, token: int) -> None:
        """Take in the token that was chosen, and begin to compute the next mask.

        Returns at once; a failure shows with the next :meth:`apply`. An end token changes nothing.
        """
        if token in self._vocabulary.end_tokens:
            return
        if self._closing is not None:
            self._closing.take(token)
        self._next = self._submit(self._step, token)

    def afford(self, token: int, room: int) -> int:
        """Return the token, or what must come in its place for the answer to be complete in time.

        The latter sets :attr:`is_shortened`. Nothing else changes: see :meth:`advance`.

        Args:
            token: The one that was chosen.
            room: Tokens that the answer may still have, this one included.
        """
        closing, look_at = self._closing, self._look_at
        if closing is None or token in self._vocabulary.end_tokens:
            return token
        if look_at is not None and room > look_at:
            return token
        rest = closing.rest(token)
        if rest is None or len(rest) < room:
            spare = room - len(rest or ()) - _WATCHED_TOKENS
            self._look_at = room - max(spare // _GROWTH, 1)
            return token
        instead = closing.rest()
        if not instead or len(instead) > room:
            return token
        self.is_shortened = True
        return instead[0]

    def accepts(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens of a draft may follow; nothing changes.

        An end token counts where the answer may end, and nothing counts behind it.

        Raises:
            ExecutionError: The library failed.
        """
        ends, size = self._vocabulary.end_tokens, self._vocabulary.size
        text = list(takewhile(lambda token: 0 <= token < size and token not in ends, tokens))
        if not text:
            return int(bool(tokens) and tokens[0] in ends and self._next.result().may_end)
        draft = list(tokens[: len(text) + 1])
        closed = draft[-1] in ends and draft[-1] < size
        return self._submit(self._validate, draft if closed else text).result()

    def _submit(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        try:
            return self._worker.submit(_guarded, call, *arguments)
        except RuntimeError as error:  # what a pool raises that was shut down
            raise closing() from error

    def _step(self, token: int) -> _Next:
        self._matcher.consume_token(token)
        if self._digits is not None:
            self._digits.take(self._vocabulary.tokenizer.decode_bytes([token]))
        return self._compute()

    def _compute(self) -> _Next:
        """Fill the ceilings from the library's mask, one bit per token."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        bits = self._vocabulary.text_bits.copy()
        bits[: len(mask)] &= mask[: len(bits)]  # behind the mask there are only unknown tokens
        may_end = self._matcher.is_accepting()
        if self._digits is not None and self._digits.are_enough:
            others = bits & ~self._vocabulary.digit_bits
            bits = others if may_end or others.any() else bits
        complete = not bits.any()
        if complete and not may_end and not self._matcher.is_stopped():
            ends = self._vocabulary.end_bits
            may_end = bool((ends[: len(mask)] & mask[: len(ends)]).any())
        if may_end:
            bits |= self._vocabulary.end_bits
        elif complete:
            raise ExecutionError("No token of this model can continue the answer in its form.")
        _CEILINGS.take(bits, axis=0, out=self._ceilings, mode="clip")
        return _Next(may_end=may_end, complete=complete)

    def _validate(self, tokens: list[int]) -> int:
        count = self._matcher.validate_tokens(tokens)
        self._check()
        return count

    def _check(self) -> None:
        # The library's own sentence would quote the answer, and errors are logged.
        if self._matcher.is_error():
            reason = self._matcher.stop_reason()
            raise ExecutionError(
                f"The answer's form could not be followed any further ({reason}).",
                hint="Simplify the schema, the regular expression or the grammar.",
            )


def _guarded(call: Callable[..., T], *arguments: object) -> T:
    try:
        return call(*arguments)
    except ExecutionError:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ExecutionError("The form of an answer could not be followed.") from error
