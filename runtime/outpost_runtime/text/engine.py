"""The text engine: one thread that gives every request its tokens.

Others reach it by messages only: :meth:`TextEngine.submit` and
:meth:`TextEngine.cancel`; what comes out goes to the request's sink, called on the
engine's thread, which must not block. One turn of the thread is: the next token of
everybody who decodes, as one batch, and then a piece of one prompt. What a run has made
is handed over before the next one, all at once: whoever it wakes then works while the
model does, and the engine need not share the interpreter with him.

What fails, fails alone: a batch that cannot run is run one by one, and only those
end that fail again; a fault in one answer ends that answer; a fault in the engine
itself ends what it was doing, and it begins afresh.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    InvalidInputError,
    NotFoundError,
    OutpostError,
    UnavailableError,
)
from outpost_runtime.latency import Wait
from outpost_runtime.priority import LOOK_AGAIN, Precedence, Priority, lost_place
from outpost_runtime.statistics import RunTimes, Statistics
from outpost_runtime.text.answer import Answer, acceptable
from outpost_runtime.text.assembler import Decode
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.drafter import LONGEST_DRAFT, Drafter
from outpost_runtime.text.memory import KeyValueMemory
from outpost_runtime.text.prefix_cache import PrefixCache, Root
from outpost_runtime.text.request import (
    Adapter,
    Event,
    FailEvent,
    FinishEvent,
    TextRequest,
)
from outpost_runtime.text.runner import Runner
from outpost_runtime.text.scheduler import PATIENCE_SECONDS, Scheduler, Sequence, Step
from outpost_runtime.text.waits import Ahead, ahead, first_token, waits

_LOG = logging.getLogger(__name__)
_SHORTEST_RETRY_SECONDS = 0.5
_WEIGHT = 0.2
_LOOK_AGAIN_SECONDS = 0.05

T = TypeVar("T")
Sink = Callable[[Event], object]


@dataclass(kw_only=True, slots=True, eq=False)
class Generation:
    """One request on its way through the engine; :meth:`TextEngine.cancel` takes it."""

    sequence: Sequence
    sink: Sink
    answer: Answer
    drafter: Drafter | None
    ahead: Ahead = field(default_factory=Ahead)
    started: float | None = None
    first_token: float | None = None
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Call:
    """Something to be done between two runs, when no answer uses the adapter any more."""

    adapter: Adapter | None
    act: Callable[[], Any]
    future: "Future[Any]"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """What an engine is doing, for metrics.

    Attributes:
        key_value_use: Share of the rows' tokens that hold something, 0 to 1.
        cache_use: The same of the prefix cache's blocks.
    """

    live: int
    waiting: int
    key_value_use: float
    cache_use: float


class TextEngine:
    """Generates text for many requests at once.

    Args:
        decoder: Memory and runs; the engine's thread owns it from now on.
        decode_text: Token ids to text, special tokens left out.
        end_tokens: Ids that end an answer.
        bundle: Digest of the bundle, which keeps its prefixes from all others.
        queue_limit: Requests that may wait before others are refused.
        patience: Seconds after which a waiting batch request counts as interactive.
        speculate: Guess tokens that the text repeats while a sequence decodes alone. Guesses
            are verified; but a run of several tokens rounds differently from a run of
            one, which only float32 graphs do not amplify, so this is for those.
        precedence: What it knows of other models' engines; None is that there are none.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        decode_text: Decode,
        end_tokens: frozenset[int],
        queue_limit: int,
        bundle: str = "",
        patience: float = PATIENCE_SECONDS,
        speculate: bool = False,
        precedence: Precedence | None = None,
    ) -> None:
        self.statistics = Statistics()
        self._runner = Runner(decoder)
        self._decode_text = decode_text
        self._end_tokens = end_tokens
        self._bundle = bundle
        self._speculate = speculate
        self._queue_limit = queue_limit
        self._patience = patience
        self._scheduler = self._new_scheduler()
        self._generations: dict[Sequence, Generation] = {}
        self._displaced: dict[Generation, BusyError] = {}
        self._answer_seconds = 1.0
        self._seat = (precedence or Precedence()).seat()
        self._calls: list[_Call] = []
        self._made: list[tuple[Generation, Event]] = []
        self._changed = threading.Condition()
        self._refusing = False
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
            NotFoundError: The request's adapter is being unloaded.
            BusyError: Too many requests are waiting; it says when to try again.
            UnavailableError: The engine is closed.
        """
        generation = self._generation(request, sink)
        with self._changed:
            if self._refusing:
                raise UnavailableError("The model is being closed.", hint="Try again in a moment.")
            if request.adapter is not None and request.adapter.retired:
                raise NotFoundError(f"The adapter '{request.adapter.name}' has been unloaded.")
            generation.ahead = ahead(self._generations)
            try:
                displaced = self._scheduler.submit(generation.sequence)
            except BusyError as error:
                raise self._busy(error) from None
            if displaced is not None:
                self._displaced[self._generations[displaced]] = self._busy(lost_place())
            self._generations[generation.sequence] = generation
            self._seat.begin(request.priority)
            self._changed.notify_all()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Stop a request before its next token; one that has ended is left alone."""
        with self._changed:
            generation.cancelled = True
            self._forget(generation)

    def call(self, act: Callable[[], T]) -> T:
        """Do something on the engine's thread between two runs; waits, and returns its result.

        Raises:
            UnavailableError: The engine is closed.
            Exception: Whatever ``act`` raises.
        """
        return self._enqueue(None, act).result()

    def warm_up(self) -> None:
        """Run what the first requests will, before there are any; see :meth:`Runner.warm_up`.

        Raises:
            ExecutionError: The model cannot run.
        """
        self.call(self._runner.warm_up)

    def with_prefixes(self, act: Callable[[PrefixCache, KeyValueMemory], T]) -> T:
        """Do something with what is remembered, between two runs; see :meth:`call`."""
        return self.call(lambda: act(self._runner.cache, self._runner.memory))

    def retire(self, adapter: Adapter, act: Callable[[], T]) -> "Future[T]":
        """Refuse new requests for an adapter from now on, and :meth:`call` after its last one.

        Returns:
            A future of what ``act`` returns; its running answers may take a while.
        """

        def forget_and_act() -> T:
            self._runner.cache.forget(adapter.digest)
            return act()

        return self._enqueue(adapter, forget_and_act)

    def state(self) -> EngineState:
        """Return what the engine is doing."""
        runner, cache = self._runner, self._runner.cache
        with self._changed:
            stored = sum(sequence.stored for sequence in self._generations)
            return EngineState(
                live=self._scheduler.live,
                waiting=self._scheduler.waiting,
                key_value_use=stored / (runner.rows * runner.max_length),
                cache_use=len(cache) / cache.capacity if cache.capacity else 0.0,
            )

    @property
    def busy(self) -> int:
        """Requests that wait or are being answered."""
        return len(self._generations)

    def drain(self, seconds: float) -> None:
        """Refuse new requests from now on, and give those that are here some time to end."""
        until = time.monotonic() + seconds
        with self._changed:
            self._refusing = True
            while self._generations and (rest := until - time.monotonic()) > 0:
                self._changed.wait(min(rest, _LOOK_AGAIN_SECONDS))

    def close(self) -> None:
        """Fail what waits or runs, and end the thread."""
        with self._changed:
            self._refusing = self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._runner.close()

    def _enqueue(self, adapter: Adapter | None, act: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise UnavailableError("The model is being closed.", hint="Try again in a moment.")
            if adapter is not None:
                adapter.retired = True
            self._calls.append(_Call(adapter=adapter, act=act, future=future))
            self._changed.notify_all()
        return future

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            rows=self._runner.rows, queue_limit=self._queue_limit, patience=self._patience
        )

    def _generation(self, request: TextRequest, sink: Sink) -> Generation:
        room = self._runner.max_length - len(request.prompt_ids)
        if not request.prompt_ids:
            raise InvalidInputError("The prompt is empty.")
        if room < 1:
            raise InvalidInputError(
                f"The prompt has {len(request.prompt_ids)} tokens; with room for an answer, "
                f"the model's context holds {self._runner.max_length - 1}.",
                hint="Shorten the prompt.",
            )
        adapter = request.adapter
        root = Root(bundle=self._bundle, adapter=adapter.digest if adapter else None)
        return Generation(
            sequence=Sequence(request=request, since=time.monotonic(), root=root),
            sink=sink,
            answer=Answer(
                request,
                decode_text=self._decode_text,
                end_tokens=self._ends(request),
                limit=min(request.max_new_tokens or room, room),
            ),
            drafter=Drafter() if self._speculate else None,
        )

    def _ends(self, request: TextRequest) -> frozenset[int]:
        own = request.adapter.end_tokens if request.adapter else None
        if own is None:
            return self._end_tokens
        # A form ends with the base's tokens, whose constraint it is.
        return own | self._end_tokens if request.constraint else own

    def _busy(self, error: BusyError) -> BusyError:
        seconds = self._answer_seconds * (1 + self._scheduler.waiting / self._runner.rows)
        seconds = max(_SHORTEST_RETRY_SECONDS, round(seconds, 1))
        return BusyError(error.message, hint=f"Try again in {seconds:g} s.", retry_after=seconds)

    def _work(self) -> None:
        while not self._closing:
            try:
                self._answer_calls()
                self._hand_over()
                step = self._next_step()
                if step is not None:
                    self._take(step)
            except Exception:  # noqa: BLE001 - a fault of ours must not leave clients hanging
                _LOG.exception("the text engine failed; it begins afresh")
                self._restart()
        closed = UnavailableError("The model was closed before the answer was complete.")
        self._fail_all(closed)
        self._hand_over()
        for call in self._calls:
            call.future.set_exception(closed)

    def _answer_calls(self) -> None:
        if not self._calls:
            return
        with self._changed:
            used = {g.sequence.request.adapter for g in self._generations.values()} - {None}
            due = [call for call in self._calls if call.adapter not in used]
            self._calls = [call for call in self._calls if call not in due]
        for call in due:
            try:
                call.future.set_result(call.act())
            except Exception as error:  # noqa: BLE001 - it belongs to who called
                call.future.set_exception(error)

    def _next_step(self) -> Step | None:
        with self._changed:
            self._wait_for_work()
            now = time.monotonic()
            over: dict[Generation, OutpostError] = {**self._displaced, **self._expired(now)}
        for generation, error in over.items():
            self._end(generation, FailEvent(error=error))
        with self._changed:
            return None if self._closing else self._scheduler.plan(now)

    def _wait_for_work(self) -> None:
        while not self._calls and not self._displaced and not self._closing:
            if self._scheduler.idle:
                self._changed.wait()
            elif self._scheduler.is_batch_only and self._seat.holds(time.monotonic()):
                self._changed.wait(LOOK_AGAIN)
            else:
                return

    def _expired(self, now: float) -> dict[Generation, DeadlineError]:
        return {
            generation: DeadlineError("The deadline passed before the answer was complete.")
            for sequence, generation in self._generations.items()
            if sequence.request.is_late(now)
        }

    def _take(self, step: Step) -> None:
        self._runner.move(step.moves)
        if len(step.decode) == 1:
            self._guarded(step.decode[0], self._decode_alone)
        elif step.decode:
            self._decode_together(step.decode)
        if step.read:
            self._hand_over()
            self._guarded(step.read, self._read, bool(step.decode))

    def _decode_together(self, sequences: tuple[Sequence, ...]) -> None:
        try:
            logits = self._runner.decode(sequences)
        except Exception as error:  # noqa: BLE001 - it comes again for those whom it concerns
            _LOG.warning("a batch of %d failed and is run one by one: %s", len(sequences), error)
            for sequence in sequences:
                self._guarded(sequence, self._decode_in_its_row)
            return
        for sequence, row in zip(sequences, logits, strict=True):
            self._guarded(sequence, self._emit, row, len(sequences))

    def _decode_in_its_row(self, generation: Generation) -> None:
        self._emit(generation, self._runner.decode_in_its_row(generation.sequence), 1)

    def _decode_alone(self, generation: Generation) -> None:
        draft = self._draft(generation)
        if draft:
            self._verify(generation, draft)
        else:
            self._emit(generation, self._runner.decode([generation.sequence])[0], 1)

    def _draft(self, generation: Generation) -> list[int]:
        if generation.drafter is None:
            return []
        sequence = generation.sequence
        beyond = self._runner.max_length - len(sequence.token_ids)
        room = min(LONGEST_DRAFT, generation.answer.room - 1, beyond)
        draft = generation.drafter.propose(sequence.token_ids, room)
        return acceptable(sequence.request, draft)

    def _verify(self, generation: Generation, draft: list[int]) -> None:
        sequence, drafter = generation.sequence, generation.drafter
        assert drafter is not None  # noqa: S101 - it made the draft
        logits = self._runner.verify(sequence, draft)
        generation.drafted += len(draft)
        before = generation.accepted
        for guess, row in zip([*draft, None], logits, strict=True):
            self._emit(generation, row, 1)
            if generation.ended or sequence.token_ids[-1] != guess:
                break
            generation.accepted += 1
        accepted = generation.accepted - before
        self._runner.accept(sequence, accepted)
        drafter.judge(len(draft), accepted, len(sequence.token_ids))

    def _read(self, generation: Generation, beside: bool) -> None:  # noqa: FBT001 - by _guarded
        sequence = generation.sequence
        generation.started = generation.started or time.monotonic()
        known = self._runner.restore(sequence)
        generation.cached += 0 if sequence.generated else known
        logits = self._runner.read(sequence, beside=beside)
        if logits is not None:
            self._emit(generation, logits, 1)

    def _guarded(self, sequence: Sequence, act: Callable[..., None], *more: object) -> None:
        """Do something for one request; if it fails, only that request ends."""
        generation = self._generations.get(sequence)
        if generation is None:
            return  # cancelled since the step was planned
        try:
            act(generation, *more)
        except OutpostError as error:
            self._end(generation, FailEvent(error=error))
        except Exception:  # noqa: BLE001 - a fault of ours ends one answer, not the engine
            _LOG.exception("the text engine failed on one answer")
            self._end(generation, FailEvent(error=_failure()))

    def _emit(self, generation: Generation, logits: NDArray[np.float32], batch: int) -> None:
        event = generation.answer.take(logits)
        now = time.monotonic()
        generation.first_token = generation.first_token or now
        generation.batch_sizes.append(batch)
        if event is not None:
            generation.sequence.token_ids.append(event.token_id)
            self._made.append((generation, event))
        if generation.answer.reason is not None:
            self._finish(generation, now)

    def _finish(self, generation: Generation, now: float) -> None:
        answer, sequence = generation.answer, generation.sequence
        started, first = generation.started, generation.first_token
        assert started is not None and first is not None  # noqa: PT018, S101 - set before this
        self._answer_seconds += _WEIGHT * (now - started - self._answer_seconds)
        text = answer.finish()
        assert answer.reason is not None  # noqa: S101 - why we are here
        event = FinishEvent(
            text=text,
            reason=answer.reason,
            prompt_tokens=len(sequence.request.prompt_ids),
            cached_tokens=generation.cached,
            generated_tokens=sequence.generated,
            drafted_tokens=generation.drafted,
            accepted_tokens=generation.accepted,
            mean_batch_size=float(np.mean(generation.batch_sizes)),
            seed=answer.seed,
            queue_seconds=started - sequence.since,
            prefill_seconds=first - started,
            decode_seconds=now - first,
        )
        self._end(generation, event)

    def _end(self, generation: Generation, event: FinishEvent | FailEvent) -> None:
        if not generation.ended:
            self._count(generation, event)
        self._made.append((generation, event))
        with self._changed:
            self._forget(generation)

    def _count(self, generation: Generation, event: FinishEvent | FailEvent) -> None:
        total = time.monotonic() - generation.sequence.since
        if isinstance(event, FailEvent):
            self.statistics.failed(total, event.error)
            if isinstance(event.error, DeadlineError) and generation.first_token is None:
                read = len(generation.sequence.request.prompt_ids) - generation.cached
                self._waited(generation, [first_token(generation.ahead, read, total)])
            return
        times = RunTimes(compute_infer=event.prefill_seconds + event.decode_seconds)
        self.statistics.ran(1, times)
        self.statistics.succeeded(1, total=total, queue=event.queue_seconds, times=times)
        self._waited(generation, waits(generation.ahead, event, others=len(self._generations) - 1))

    def _waited(self, generation: Generation, found: Iterable[Wait]) -> None:
        if generation.sequence.request.priority is Priority.INTERACTIVE:
            for wait in found:
                self.statistics.waited(wait)

    def _hand_over(self) -> None:
        made, self._made = self._made, []
        for generation, event in made:
            if generation.cancelled:
                continue  # since the event was made: its sink hears nothing more
            try:
                generation.sink(event)
            except Exception:  # noqa: BLE001 - who listened is gone; others are served on
                _LOG.exception("a request's sink failed; the request is dropped")
                self.cancel(generation)

    def _forget(self, generation: Generation) -> None:
        generation.ended = True
        self._displaced.pop(generation, None)
        self._scheduler.remove(generation.sequence)
        if self._generations.pop(generation.sequence, None):
            self._seat.end(generation.sequence.request.priority)

    def _fail_all(self, error: OutpostError) -> None:
        for generation in list(self._generations.values()):
            self._end(generation, FailEvent(error=error))

    def _restart(self) -> None:
        self._fail_all(_failure())
        with self._changed:
            self._scheduler = self._new_scheduler()
        self._runner.reset()


def _failure() -> ExecutionError:
    return ExecutionError("The model failed while it made this answer.")
