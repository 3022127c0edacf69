"""One bidirectional stream: requests come in while answers to earlier ones go out.

Rules:

1. At most :data:`MOST_AT_ONCE` requests of a stream are under way; others are not read yet.
2. What is wrong with a request is said in an answer of its own; the stream goes on.
3. Models that give one answer per request give them in the order of the requests.
4. When the client has gone, everything that it asked stops.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from inference import grpc_service_pb2 as pb

from outpost_runtime.errors import OutpostError
from outpost_runtime.server.inference import wire
from outpost_runtime.server.inference.core import Inference
from outpost_runtime.server.inference.message import InferRequest, InferResponse
from outpost_runtime.server.inference.parameters import IS_FINAL
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.server.status import status_of
from outpost_runtime.server.waiting import aside_if_large

MOST_AT_ONCE = 64

_Answers = asyncio.Queue[pb.ModelStreamInferResponse | Exception | None]


async def answered(
    inference: Inference,
    requests: AsyncIterator[pb.ModelInferRequest],
    regions: Regions,
    seconds_left: float | None,
) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
    """Yield the answers to a stream of requests until all of them are answered.

    Args:
        regions: Shared memory that this client may use.
        seconds_left: How long the call goes on, or None.

    Raises:
        OutpostError: Something in the stream was no request; what came before is answered.
    """
    answers: _Answers = asyncio.Queue(MOST_AT_ONCE)
    reading = asyncio.create_task(_read(inference, requests, regions, answers, seconds_left))
    try:
        while (answer := await answers.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        reading.cancel()


async def _read(
    inference: Inference,
    requests: AsyncIterator[pb.ModelInferRequest],
    regions: Regions,
    answers: _Answers,
    seconds_left: float | None,
) -> None:
    places = asyncio.Semaphore(MOST_AT_ONCE)
    previous = asyncio.Event()
    previous.set()
    end: Exception | None = None
    async with asyncio.TaskGroup() as group:
        try:
            async for message in requests:
                await places.acquire()
                told = asyncio.Event()
                # One after the other: of a sequence, what came first is asked first.
                asked = await _decoded(message, regions)
                decoupled = await _is_decoupled(inference, asked)
                answering = _Answering(inference, message.id, asked, answers, previous, told)
                task = group.create_task(answering.run(seconds_left, decoupled=decoupled))
                task.add_done_callback(lambda _: places.release())
                if not decoupled:  # else nobody waits for a long text
                    previous = told
        except Exception as error:  # noqa: BLE001 - what was asked before it is still answered
            end = error
    await answers.put(end)


async def _decoded(message: pb.ModelInferRequest, regions: Regions) -> InferRequest | Exception:
    try:
        return await aside_if_large(wire.size_of(message), lambda: wire.decode(message, regions))
    except OutpostError as error:
        return error


async def _is_decoupled(inference: Inference, asked: InferRequest | Exception) -> bool:
    """Whether any number of answers is to come; what is refused has one."""
    if isinstance(asked, Exception):
        return False
    try:
        return await inference.is_decoupled(asked)
    except OutpostError:
        return False


class _Answering:
    """The answers to one request."""

    def __init__(
        self,
        inference: Inference,
        identity: str,
        asked: InferRequest | Exception,
        answers: _Answers,
        previous: asyncio.Event,
        told: asyncio.Event,
    ) -> None:
        self._inference = inference
        self._identity = identity
        self._asked = asked
        self._answers = answers
        self._previous = previous
        self._told = told

    async def run(self, seconds_left: float | None, *, decoupled: bool) -> None:
        """Put the answers into the queue."""
        try:
            if isinstance(self._asked, Exception):
                raise self._asked  # noqa: TRY301 - it becomes an answer as all others do
            answer = self._stream if decoupled else self._answer
            await answer(self._asked, seconds_left)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer here
            _, text = status_of(error)
            await self._previous.wait()
            refused = pb.ModelInferResponse(id=self._identity)
            await self._answers.put(
                pb.ModelStreamInferResponse(error_message=text, infer_response=refused)
            )
        finally:
            self._told.set()

    async def _answer(self, request: InferRequest, seconds_left: float | None) -> None:
        response = await self._inference.infer(request, seconds_left)
        await self._previous.wait()
        await self._put(replace(response, parameters={IS_FINAL: True}))

    async def _stream(self, request: InferRequest, seconds_left: float | None) -> None:
        stream = self._inference.stream(request, seconds_left)
        async with aclosing(stream) as responses:
            async for response in responses:
                await self._put(response)

    async def _put(self, response: InferResponse) -> None:
        message = await aside_if_large(response.weight, lambda: wire.encode(response))
        await self._answers.put(pb.ModelStreamInferResponse(infer_response=message))
