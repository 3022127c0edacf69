"""``outpost.v1.Text``: generation requests in, the engine's events to the stream."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from outpost.v1 import text_pb2, text_pb2_grpc

from outpost_runtime.server.generation import Generation
from outpost_runtime.text.request import FinishEvent, FinishReason, TokenEvent

SERVICE = "outpost.v1.Text"

_REASONS = {
    FinishReason.END_OF_TEXT: text_pb2.FINISH_REASON_END_OF_TEXT,
    FinishReason.STOP_STRING: text_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: text_pb2.FINISH_REASON_LENGTH,
}


class TextService(text_pb2_grpc.TextServicer):
    """Handlers of the service."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def Generate(  # noqa: N802 - the wire's name
        self,
        request: text_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Stream an answer; a cancelled call stops the work within one token."""
        async with aclosing(self._generation.events(request, context.time_remaining())) as events:
            async for event in events:
                if isinstance(event, FinishEvent):
                    if event.text:
                        yield text_pb2.GenerateResponse(piece=text_pb2.Piece(text=event.text))
                    yield text_pb2.GenerateResponse(summary=to_summary(event))
                elif _wants_tokens(request) or any(token.text for token in event):
                    yield to_piece(event, request)


def to_piece(
    tokens: Sequence[TokenEvent], request: text_pb2.GenerateRequest
) -> text_pb2.GenerateResponse:
    """Turn tokens into the wire's piece, with the tokens only if they were asked for."""
    piece = text_pb2.Piece(text="".join([token.text for token in tokens]))
    if _wants_tokens(request):
        for token in tokens:
            added = piece.tokens.add(id=token.token_id, log_probability=token.log_probability)
            for other, log_probability in token.alternatives:
                added.alternatives.add(id=other, log_probability=log_probability)
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
