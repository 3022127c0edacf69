"""``outpost.v1.Text``: generation requests to the text engine, its events to the stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
from outpost.v1 import text_pb2, text_pb2_grpc

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.models import Models
from outpost_runtime.server.metrics import Metrics
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.chat import Message
from outpost_runtime.text.constraint import Constraint, ConstraintKind
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.request import (
    SAMPLING_PARAMETERS,
    Event,
    FailEvent,
    FinishEvent,
    FinishReason,
    Priority,
    TextRequest,
    TokenEvent,
)

SERVICE = "outpost.v1.Text"

_REASONS = {
    FinishReason.END_OF_TEXT: text_pb2.FINISH_REASON_END_OF_TEXT,
    FinishReason.STOP_STRING: text_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: text_pb2.FINISH_REASON_LENGTH,
}
_CONSTRAINTS = {
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "regex": ConstraintKind.REGEX,
    "grammar": ConstraintKind.GRAMMAR,
}
_PRIORITIES = {text_pb2.PRIORITY_BATCH: Priority.BATCH}


class TextService(text_pb2_grpc.TextServicer):
    """Handlers of the service."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._compiling = ThreadPoolExecutor(2, thread_name_prefix="constraints")

    async def Generate(  # noqa: N802 - the wire's name
        self,
        request: text_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Stream an answer; a cancelled call stops the work within one token."""
        model, adapter = self._models.text(request.model, request.adapter)
        loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        # Tokenizing a long prompt takes milliseconds that other calls should not wait, and
        # compiling a schema may take seconds that other tokenizing should not wait.
        threads = self._compiling if request.HasField("constraint") else None
        text_request = await loop.run_in_executor(
            threads, to_text_request, request, model, adapter, deadline
        )

        events: asyncio.Queue[Event] = asyncio.Queue()
        generation = model.engine.submit(
            text_request, lambda event: loop.call_soon_threadsafe(events.put_nowait, event)
        )
        try:
            while isinstance(event := await events.get(), TokenEvent):
                if event.text or _wants_tokens(request):
                    yield to_piece(event, request)
        finally:
            model.engine.cancel(generation)
        if isinstance(event, FailEvent):
            raise event.error
        self._metrics.finished(request.model, event)
        if event.text:
            yield text_pb2.GenerateResponse(piece=text_pb2.Piece(text=event.text))
        yield text_pb2.GenerateResponse(summary=to_summary(event))


def to_text_request(
    request: text_pb2.GenerateRequest,
    model: TextModel,
    adapter: ShelvedAdapter | None,
    deadline: float | None,
) -> TextRequest:
    """Turn the wire's request into the engine's; may take seconds when it has a constraint.

    Raises:
        InvalidInputError: A parameter is out of range, or there is no prompt.
        UnsupportedError: It is a chat and the model has no chat template.
    """
    parameters = request.parameters
    if parameters.logit_bias and max(parameters.logit_bias) >= model.decoder.vocabulary_size:
        raise InvalidInputError(
            f"logit_bias names token {max(parameters.logit_bias)}; "
            f"the model has {model.decoder.vocabulary_size} tokens."
        )
    given = {field.name: value for field, value in parameters.ListFields()}
    changes = {name: given[name] for name in SAMPLING_PARAMETERS if name in given}
    defaults = (adapter and adapter.sampling) or model.sampling
    return TextRequest(
        prompt_ids=model.prompt_ids(_prompt(request), adapter),
        sampling=replace(defaults, **changes, logit_bias=tuple(parameters.logit_bias.items())),
        max_new_tokens=given.get("max_new_tokens"),
        seed=given.get("seed"),
        stop=tuple(parameters.stop),
        log_probabilities=request.return_log_probabilities,
        alternatives=request.alternatives,
        deadline=deadline,
        priority=_PRIORITIES.get(request.priority, Priority.INTERACTIVE),
        adapter=adapter.adapter if adapter else None,
        constraint=_constraint(request, model),
    )


def to_piece(event: TokenEvent, request: text_pb2.GenerateRequest) -> text_pb2.GenerateResponse:
    """Turn a token into the wire's piece, with the token only if it was asked for."""
    piece = text_pb2.Piece(text=event.text)
    if _wants_tokens(request):
        token = piece.tokens.add(id=event.token_id, log_probability=event.log_probability)
        for other, log_probability in event.alternatives:
            token.alternatives.add(id=other, log_probability=log_probability)
    return text_pb2.GenerateResponse(piece=piece)


def to_summary(event: FinishEvent) -> text_pb2.Summary:
    """Turn the engine's last word into the wire's."""
    return text_pb2.Summary(
        finish_reason=_REASONS[event.reason],
        usage=text_pb2.Usage(
            prompt_tokens=event.prompt_tokens,
            generated_tokens=event.generated_tokens,
            cached_tokens=event.cached_tokens,
        ),
        timings=text_pb2.Timings(
            queue_seconds=event.queue_seconds,
            prefill_seconds=event.prefill_seconds,
            decode_seconds=event.decode_seconds,
            time_to_first_token_seconds=event.first_token_seconds,
            time_per_output_token_seconds=event.seconds_per_token,
        ),
        seed=event.seed,
        speculation=text_pb2.Speculation(
            drafted_tokens=event.drafted_tokens, accepted_tokens=event.accepted_tokens
        ),
        mean_batch_size=event.mean_batch_size,
    )


def _wants_tokens(request: text_pb2.GenerateRequest) -> bool:
    return request.return_tokens or request.return_log_probabilities or request.alternatives > 0


def _constraint(request: text_pb2.GenerateRequest, model: TextModel) -> Constraint | None:
    kind = request.constraint.WhichOneof("kind")
    if kind is None:
        return None
    return model.constraint(_CONSTRAINTS[kind], getattr(request.constraint, kind))


def _prompt(request: text_pb2.GenerateRequest) -> str | list[Message]:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        return request.prompt
    if kind == "chat":
        return [Message(role=m.role, content=m.content) for m in request.chat.messages]
    raise InvalidInputError("The request has neither a prompt nor a chat.")
