"""What the protocol's operations do, whatever they came in over."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from inference import grpc_service_pb2 as pb
from inference import model_config_pb2

from outpost_runtime import __version__
from outpost_runtime.address import is_loopback
from outpost_runtime.embeddings import EmbeddingModel
from outpost_runtime.errors import (
    BusyError,
    ExecutionError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from outpost_runtime.models import Models
from outpost_runtime.opening import Model
from outpost_runtime.raw_tensors import to_raw, weight_of
from outpost_runtime.server.generation import Generation
from outpost_runtime.server.inference import description, text
from outpost_runtime.server.inference.classification import classify
from outpost_runtime.server.inference.message import (
    InferRequest,
    InferResponse,
    OutputTensor,
    RequestedOutput,
)
from outpost_runtime.server.inference.parameters import (
    check_reserved,
    deadline_of,
    priority_of,
    sequence_of,
)
from outpost_runtime.server.inference.shared_memory import NoRegions, Regions
from outpost_runtime.server.waiting import Crossing, aside_if_large, end_of, exchanged, result_of
from outpost_runtime.tensor.model import TensorModel
from outpost_runtime.tensor.request import Outputs
from outpost_runtime.text.model import TextModel

NO_CUDA = "This server shares no CUDA memory; use system shared memory."
NO_TRACES = "This server has no trace settings; see its metrics."
NO_LOG_SETTINGS = "This server's log cannot be set by clients."
"""What parts of the protocol that are not here answer, over gRPC and HTTP."""

_CHANGES = 4

T = TypeVar("T")


class Inference:
    """The protocol's operations on a server's models."""

    def __init__(self, models: Models, generation: Generation, crossing: Crossing) -> None:
        self._models = models
        self._generation = generation
        self._crossing = crossing
        # Loading waits for a disk, and unloading a model for answers, though not for ever: not in
        # the event loop's few threads.
        self._changing = ThreadPoolExecutor(_CHANGES, thread_name_prefix="models")
        self._regions, self._no_regions = Regions(), NoRegions()

    def close(self) -> None:
        """Forget the regions and end the threads."""
        self._regions.close()
        self._changing.shutdown(wait=False, cancel_futures=True)

    def regions_of(self, host: str) -> Regions:
        """Return the shared memory that clients of a host have registered."""
        return self._regions if is_loopback(host) else self._no_regions

    @property
    def ready(self) -> bool:
        """Whether everything is served that should be."""
        return self._models.complete

    def server(self) -> pb.ServerMetadataResponse:
        """Return what this server is."""
        return pb.ServerMetadataResponse(
            name="outpost", version=__version__, extensions=description.EXTENSIONS
        )

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether a model is served; one that is not known, or being opened, is not: no error.

        Raises:
            InvalidInputError: The version is none.
        """
        try:
            self.model(name, version)
        except (NotFoundError, BusyError):
            return False
        return True

    def model(self, name: str, version: str) -> Model:
        """Return a model; of an adapter, its base.

        Raises:
            InvalidInputError: The version is none.
            NotFoundError: There is no such model or version.
        """
        if version and not version.isdecimal() and not self._is_served(name, version):
            raise InvalidInputError(
                f"'{version}' is no version of '{name}': a version is a number."
            )
        model, served = self._models.find(name)
        if version not in ("", served):
            raise NotFoundError(f"The model '{name}' has no version '{version}'; {served} is here.")
        return model

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Return a model's tensors; raises as :meth:`model`."""
        return description.metadata(self.model(name, version), *self._called(name))

    def configuration(self, name: str, version: str) -> model_config_pb2.ModelConfig:
        """Return how a model is run; raises as :meth:`model`."""
        return description.configuration(self.model(name, version), name)

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Return what a model has done, or all for the empty name; raises as :meth:`model`."""
        models = [self.model(name, version)] if name else list(self._models)
        return pb.ModelStatisticsResponse(model_stats=map(description.counted, models))

    async def index(self, repository: str, *, ready_only: bool) -> pb.RepositoryIndexResponse:
        """Return the store's names and what became of them.

        Raises:
            UnsupportedError: A repository is named; there is one only.
        """
        _check_repository(repository)
        entries = await asyncio.to_thread(self._models.index)  # reads manifests
        return description.listed(entries, ready_only=ready_only)

    async def load(self, repository: str, name: str, *, parameters: bool) -> None:
        """Serve what is active in the store under a name.

        Args:
            parameters: Whether the request would change how: models come from the store, as
                they were built.

        Raises:
            OutpostError: It cannot be served.
        """
        _check_repository(repository)
        if parameters:
            raise InvalidInputError(
                "A model is loaded as it was built: load takes no configuration and no files."
            )
        try:
            await self._change(self._models.load, name)
        except NotFoundError as error:  # INTERNAL is what this protocol's servers say here
            raise ExecutionError(f"'{name}' cannot be loaded: {error.message}") from error

    async def unload(self, repository: str, name: str) -> None:
        """Stop serving a model; one that is not served is no error.

        Raises:
            UnsupportedError: A repository is named; there is one only.
        """
        _check_repository(repository)
        try:
            ended = await self._change(self._models.unload, name)
        except NotFoundError:
            return
        await end_of(ended)

    def shared_memory(self, name: str, host: str) -> pb.SystemSharedMemoryStatusResponse:
        """Return a registered region, or all for the empty name, to a client of a host.

        Raises:
            NotFoundError: It is not registered.
            UnsupportedError: The host is not this one.
        """
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self.regions_of(host).status(name):
            response.regions[region.name].MergeFrom(
                pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.byte_size,
                )
            )
        return response

    async def infer(self, request: InferRequest, seconds_left: float | None) -> InferResponse:
        """Run a model once.

        Args:
            seconds_left: How long the call itself goes on, or None.

        Raises:
            OutpostError: The request is refused, or the model fails.
        """
        deadline = deadline_of(request.parameters, time.monotonic(), seconds_left)
        while True:
            await exchanged(self._models, request.model, deadline=deadline)
            model = self.model(request.model, request.version)
            try:
                return await self._infer(request, model, deadline)
            except UnavailableError:
                if self._models.is_served(model):
                    raise  # else another one has taken its place, and answers

    async def _infer(
        self, request: InferRequest, model: Model, deadline: float | None
    ) -> InferResponse:
        self._models.touch(request.model)
        if isinstance(model, TextModel):
            raise UnsupportedError(
                f"The model '{request.model}' is decoupled: it answers with a stream of "
                "responses; ask it with ModelStreamInfer, or over HTTP at its generate_stream."
            )
        check_reserved(request.parameters)
        wanted = self._wanted(request, model)  # refuse before anything runs
        future = model.engine.submit(
            request.feeds,
            priority=priority_of(request.parameters),
            deadline=deadline,
            sequence=sequence_of(request.parameters),
        )
        outputs = await result_of(future, self._crossing, deadline)
        weight = sum(map(weight_of, outputs.values()))
        tensors = await aside_if_large(
            weight, lambda: tuple(self._output(model, outputs, each) for each in wanted)
        )
        return InferResponse(
            model=request.model,
            version=model.bundle.manifest.version,
            id=request.id,
            outputs=tensors,
        )

    async def is_decoupled(self, request: InferRequest) -> bool:
        """Whether a model answers with any number of responses; raises as :meth:`model`."""
        deadline = deadline_of(request.parameters, time.monotonic(), None)
        await exchanged(self._models, request.model, deadline=deadline)
        return isinstance(self.model(request.model, request.version), TextModel)

    async def stream(
        self, request: InferRequest, seconds_left: float | None
    ) -> AsyncGenerator[InferResponse, None]:
        """Yield the responses of a model; closing the iterator stops the work.

        Raises:
            OutpostError: The request is refused, or the model fails.
        """
        if not await self.is_decoupled(request):
            yield await self.infer(request, seconds_left)
            return
        check_reserved(request.parameters)
        version = self.model(request.model, request.version).bundle.manifest.version
        now = time.monotonic()
        deadline = deadline_of(request.parameters, now, seconds_left)
        left = None if deadline is None else deadline - now
        async with aclosing(text.answers(request, version, self._generation, left)) as answers:
            async for answer in answers:
                yield answer

    def _called(self, name: str) -> tuple[str, str]:
        return name, self._models.find(name)[1]

    async def _change(self, change: Callable[[str], T], name: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._changing, change, name)

    def _is_served(self, name: str, version: str) -> bool:
        try:
            return self._models.find(name)[1] == version
        except NotFoundError:
            return False

    def _wanted(
        self, request: InferRequest, model: EmbeddingModel | TensorModel
    ) -> tuple[RequestedOutput, ...]:
        known = [spec.name for spec in model.engine.outputs]
        for output in request.outputs:
            if output.name not in known:
                raise InvalidInputError(
                    f"The model has no output '{output.name}'; its outputs are {', '.join(known)}."
                )
        named = {output.name: output for output in reversed(request.outputs)}  # the first counts
        return tuple(named.values()) or tuple(RequestedOutput(name=name) for name in known)

    def _output(
        self, model: EmbeddingModel | TensorModel, outputs: Outputs, wanted: RequestedOutput
    ) -> OutputTensor:
        name, array = wanted.name, outputs[wanted.name]
        if wanted.classes:
            labels = model.interface.labels if isinstance(model, TensorModel) else ()
            batched = bool(model.engine.shape.max_batch)
            array = classify(name, array, wanted.classes, labels, batched=batched)
            return OutputTensor(name=name, datatype="BYTES", array=array, binary=wanted.binary)
        placement = wanted.placement
        if placement is not None:
            data = to_raw(array)
            self._regions.write(placement, data)
            placement = replace(placement, byte_size=len(data))
        datatype = next(spec.datatype for spec in model.engine.outputs if spec.name == name)
        return OutputTensor(
            name=name, datatype=datatype, array=array, placement=placement, binary=wanted.binary
        )


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError("There is one repository here, the store: name none.")
