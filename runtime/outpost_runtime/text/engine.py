"""The text engine: one thread that owns a decoder and gives every request its tokens.

Others reach it by messages only: :meth:`TextEngine.submit` and
:meth:`TextEngine.cancel` put something into one queue; what comes out goes to the
request's sink, called on the engine's thread, which must not block.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import (
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    OutpostError,
    UnavailableError,
)
from outpost_runtime.text import sampler
from outpost_runtime.text.assembler import Decode, TextAssembler
from outpost_runtime.text.decoder import PREFILL_CHUNK, Decoder
from outpost_runtime.text.request import (
    Event,
    FailEvent,
    FinishEvent,
    FinishReason,
    TextRequest,
    TokenEvent,
)
from outpost_runtime.text.scheduler import Prefill, Scheduler, Sequence, Step

QUEUE_LIMIT = 64

_LOG = logging.getLogger(__name__)

Sink = Callable[[Event], object]


@dataclass(kw_only=True, slots=True, eq=False)
class Generation:
    """One request on its way through the engine; :meth:`TextEngine.cancel` takes it."""

    sequence: Sequence
    sink: Sink
    assembler: TextAssembler
    limit: int
    seed: int | None
    random: random.Random
    seen: set[int]
    submitted: float
    started: float | None = None
    first_token: float | None = None


class TextEngine:
    """Generates text, one request after another, token by token.

    Args:
        decoder: Memory and runs; the engine's thread owns it from now on.
        decode_text: Token ids to text, special tokens left out.
        end_tokens: Ids that end an answer.
        queue_limit: Requests that may wait before others are refused.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        decode_text: Decode,
        end_tokens: frozenset[int],
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._decoder = decoder
        self._decode_text = decode_text
        self._end_tokens = end_tokens
        self._scheduler = Scheduler(queue_limit=queue_limit, chunk=PREFILL_CHUNK)
        self._generations: dict[Sequence, Generation] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="text-engine", daemon=True)
        self._thread.start()

    def submit(self, request: TextRequest, sink: Sink) -> Generation:
        """Queue a request.

        Args:
            sink: Called on the engine's thread with a :class:`TokenEvent` for every token and
                one :class:`FinishEvent` or :class:`FailEvent` at the end; never after a cancel
                has been seen. It must return at once.

        Raises:
            InvalidInputError: The prompt is empty or does not fit into the context.
            BusyError: Too many requests are waiting.
            UnavailableError: The engine is closed.
        """
        generation = self._generation(request, sink)
        with self._changed:
            if self._closing:
                raise UnavailableError("The model is being closed.", hint="Try again in a moment.")
            self._scheduler.submit(generation.sequence)
            self._generations[generation.sequence] = generation
            self._changed.notify()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Stop a request before its next token; one that has ended is left alone."""
        with self._changed:
            self._forget(generation)

    def close(self) -> None:
        """Fail what waits or runs, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._decoder.close()

    def _generation(self, request: TextRequest, sink: Sink) -> Generation:
        room = self._decoder.max_length - len(request.prompt_ids)
        if not request.prompt_ids:
            raise InvalidInputError("The prompt is empty.")
        if room < 1:
            raise InvalidInputError(
                f"The prompt has {len(request.prompt_ids)} tokens; with room for an answer, "
                f"the model's context holds {self._decoder.max_length - 1}.",
                hint="Shorten the prompt.",
            )
        greedy = request.sampling.temperature == 0
        seed = None if greedy else _seed(request.seed)
        return Generation(
            sequence=Sequence(request=request),
            sink=sink,
            assembler=TextAssembler(self._decode_text, request.prompt_ids, request.stop),
            limit=min(request.max_new_tokens or room, room),
            seed=seed,
            random=random.Random(seed),  # noqa: S311 - for sampling, not for secrets
            seen=set(request.prompt_ids),
            submitted=time.monotonic(),
        )

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            generation = self._generations.get(step.sequence)
            if generation is None:
                continue
            try:
                self._run(step, generation)
            except OutpostError as error:
                self._end(generation, FailEvent(error=error))
            except Exception:  # noqa: BLE001 - a fault of ours ends one answer, not the engine
                _LOG.exception("the text engine failed inside a step")
                failure = ExecutionError("The model failed while it made this answer.")
                self._end(generation, FailEvent(error=failure))
        self._fail_all()

    def _next_step(self) -> Step | None:
        with self._changed:
            while self._scheduler.idle and not self._closing:
                self._changed.wait()
            return None if self._closing else self._scheduler.plan()

    def _run(self, step: Step, generation: Generation) -> None:
        now = time.monotonic()
        deadline = step.sequence.request.deadline
        if deadline is not None and now > deadline:
            raise DeadlineError("The deadline passed before the answer was complete.")
        generation.started = generation.started or now
        sequence = step.sequence
        if isinstance(step, Prefill):
            ids = np.array(sequence.token_ids[sequence.stored :][: step.count], np.int64)
            logits = self._decoder.prefill(step.slot, ids, sequence.stored)
            sequence.stored += step.count
            if not step.last:
                return
        else:
            logits = self._decoder.decode([sequence.token_ids[-1]], [sequence.stored])[0]
            sequence.stored += 1
        self._emit(generation, logits)

    def _emit(self, generation: Generation, logits: NDArray[np.float32]) -> None:
        request, sequence = generation.sequence.request, generation.sequence
        token = sampler.choose(
            logits, request.sampling, generation.seen, generation.random.random()
        )
        now = time.monotonic()
        generation.first_token = generation.first_token or now
        if token in self._end_tokens:
            self._finish(generation, FinishReason.END_OF_TEXT, now)
            return
        sequence.token_ids.append(token)
        generation.seen.add(token)
        text = generation.assembler.add(token)
        probability = sampler.log_probability(logits, token) if request.log_probabilities else None
        self._send(generation, TokenEvent(text=text, token_id=token, log_probability=probability))
        if generation.assembler.stopped:
            self._finish(generation, FinishReason.STOP_STRING, now)
        elif sequence.generated >= generation.limit:
            self._finish(generation, FinishReason.LENGTH, now)

    def _finish(self, generation: Generation, reason: FinishReason, now: float) -> None:
        assert generation.started is not None  # noqa: S101 - set before the first run
        assert generation.first_token is not None  # noqa: S101 - set before the first token
        finished = generation.assembler.stopped
        event = FinishEvent(
            text="" if finished else generation.assembler.finish(),
            reason=reason,
            prompt_tokens=len(generation.sequence.request.prompt_ids),
            generated_tokens=generation.sequence.generated,
            seed=generation.seed,
            queue_seconds=generation.started - generation.submitted,
            prefill_seconds=generation.first_token - generation.started,
            decode_seconds=now - generation.first_token,
        )
        self._end(generation, event)

    def _end(self, generation: Generation, event: FinishEvent | FailEvent) -> None:
        self._send(generation, event)
        with self._changed:
            self._forget(generation)

    def _send(self, generation: Generation, event: Event) -> None:
        # A cancelled request is forgotten at once; its sink hears nothing more.
        if generation.sequence not in self._generations:
            return
        try:
            generation.sink(event)
        except Exception:  # noqa: BLE001 - who listened is gone; others are served on
            _LOG.exception("a request's sink failed; the request is dropped")
            self.cancel(generation)

    def _forget(self, generation: Generation) -> None:
        self._scheduler.remove(generation.sequence)
        self._generations.pop(generation.sequence, None)

    def _fail_all(self) -> None:
        error = UnavailableError("The model was closed before the answer was complete.")
        for generation in list(self._generations.values()):
            self._end(generation, FailEvent(error=error))


def _seed(requested: int | None) -> int:
    return random.SystemRandom().getrandbits(63) if requested is None else requested
