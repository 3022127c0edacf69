"""``outpost.v1.Embeddings``: texts to the tensor engine, vectors back."""

import asyncio
from typing import Any

import grpc
from outpost.v1 import embeddings_pb2, embeddings_pb2_grpc

from outpost_runtime.embeddings import EmbeddingModel, place
from outpost_runtime.errors import UnavailableError
from outpost_runtime.models import Models
from outpost_runtime.server.waiting import Crossing, exchanged, result_of

SERVICE = "outpost.v1.Embeddings"


class EmbeddingsService(embeddings_pb2_grpc.EmbeddingsServicer):
    """Handlers of the service."""

    def __init__(self, models: Models, crossing: Crossing) -> None:
        self._models = models
        self._crossing = crossing

    async def Embed(  # noqa: N802 - the wire's name
        self,
        request: embeddings_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - gRPC's signature
    ) -> embeddings_pb2.EmbedResponse:
        """Return one vector per text; a cancelled call drops what has not been run."""
        while True:
            await exchanged(self._models, request.model)
            model = self._models.get_as(request.model, EmbeddingModel, SERVICE)
            try:
                return await self._embed(request, model)
            except UnavailableError:
                if self._models.is_served(model):
                    raise  # else another one has taken its place, and answers

    async def _embed(
        self, request: embeddings_pb2.EmbedRequest, model: EmbeddingModel
    ) -> embeddings_pb2.EmbedResponse:
        encoded = await asyncio.to_thread(model.encode, list(request.texts))
        batches = model.submit(encoded)
        name = model.engine.outputs[0].name
        try:
            outputs = [(await result_of(batch.output, self._crossing))[name] for batch in batches]
        finally:
            for batch in batches:
                batch.output.cancel()
        rows = [(b.positions, values) for b, values in zip(batches, outputs, strict=True)]
        return embeddings_pb2.EmbedResponse(
            embeddings=[
                embeddings_pb2.Embedding(
                    values=vector, tokens=len(text.ids), truncated=text.truncated
                )
                for text, vector in zip(encoded, place(rows), strict=True)
            ]
        )
