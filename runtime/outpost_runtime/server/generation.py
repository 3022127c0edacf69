"""Text requests on their way between the server's event loop and the text engine's thread."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from outpost.v1 import text_pb2

from outpost_runtime.errors import InvalidInputError, NotFoundError, UnavailableError
from outpost_runtime.models import Models
from outpost_runtime.priority import Priority
from outpost_runtime.server.metrics import Metrics
from outpost_runtime.server.waiting import Crossing, Workshop, exchanged
from outpost_runtime.text import engine
from outpost_runtime.text.adapter_shelf import ShelvedAdapter
from outpost_runtime.text.chat import Message
from outpost_runtime.text.constraint import Constraint, ConstraintKind
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.request import (
    SAMPLING_PARAMETERS,
    Event,
    FailEvent,
    FinishEvent,
    TextRequest,
    TokenEvent,
)

_CONSTRAINTS = {
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "regex": ConstraintKind.REGEX,
    "grammar": ConstraintKind.GRAMMAR,
}
_FORMS_AT_ONCE = 2
_MOST_FORMS = 32
_FORMS_RETRY_SECONDS = 2.0

_PRIORITIES = {text_pb2.PRIORITY_BATCH: Priority.BATCH}


class Generation:
    """Makes answers; every service that offers text uses it."""

    def __init__(self, models: Models, metrics: Metrics, crossing: Crossing) -> None:
        self._models = models
        self._metrics = metrics
        self._crossing = crossing
        # What was tried before does not wait behind what may be hostile.
        self._new_forms, self._known_forms = _workshop("new-forms"), _workshop("known-forms")

    def close(self) -> None:
        """End the threads."""
        self._new_forms.close()
        self._known_forms.close()

    async def events(
        self, request: text_pb2.GenerateRequest, seconds_left: float | None
    ) -> AsyncGenerator[Sequence[TokenEvent] | FinishEvent, None]:
        """Yield an answer's tokens and its end; closing the iterator stops the work.

        Whoever takes them more slowly than they are made gets several at once.

        Args:
            seconds_left: How long somebody waits for it, or None.

        Raises:
            OutpostError: The request is refused, or fails.
        """
        deadline = None if seconds_left is None else time.monotonic() + seconds_left
        inbox, named = _Inbox(), (request.model, request.adapter)
        while True:
            await exchanged(self._models, *named, deadline=deadline)
            model, adapter = self._models.text(*named)
            try:
                generation = await self._submit(request, model, adapter, deadline, inbox)
                break
            except UnavailableError:
                if self._models.is_served(model):
                    raise  # else another one has taken its place, and answers
            except NotFoundError:
                if adapter is None or self._models.text(*named)[1] is adapter:
                    raise  # else another one of its name has
        try:
            while tokens := await inbox.take():
                yield tokens
        finally:
            model.engine.cancel(generation)
        end = inbox.end
        if isinstance(end, FailEvent):
            raise end.error
        assert end is not None  # noqa: S101 - nothing else ends the tokens
        self._metrics.finished(request.model, end)
        yield end

    async def _submit(
        self,
        request: text_pb2.GenerateRequest,
        model: TextModel,
        adapter: ShelvedAdapter | None,
        deadline: float | None,
        inbox: "_Inbox",
    ) -> engine.Generation:
        # Tokenizing a long prompt takes milliseconds that other calls should not wait, and
        # compiling a schema may take seconds that other tokenizing should not wait.
        def prepare() -> TextRequest:
            return to_text_request(request, model, adapter, deadline)

        form = _form(request)
        if form is None:
            text_request = await asyncio.to_thread(prepare)
        else:
            known = model.knows_constraint(*form)
            workshop = self._known_forms if known else self._new_forms
            text_request = await workshop.run(prepare, deadline)
        return model.engine.submit(
            text_request, lambda event: self._crossing.call(lambda: inbox.put(event))
        )


class _Inbox:
    """What an engine has made for one stream and nobody has taken; the event loop's."""

    def __init__(self) -> None:
        self._tokens: list[TokenEvent] = []
        self._came = asyncio.Event()
        self.end: FinishEvent | FailEvent | None = None

    def put(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self._tokens.append(event)
        else:
            self.end = event
        self._came.set()

    async def take(self) -> list[TokenEvent]:
        """Wait for tokens; returns none of them when the end has come."""
        while not self._tokens and self.end is None:
            self._came.clear()
            await self._came.wait()
        taken, self._tokens = self._tokens, []
        return taken


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


def _workshop(name: str) -> Workshop:
    return Workshop(
        name, threads=_FORMS_AT_ONCE, places=_MOST_FORMS, retry_after=_FORMS_RETRY_SECONDS
    )


def _form(request: text_pb2.GenerateRequest) -> tuple[ConstraintKind, str] | None:
    kind = request.constraint.WhichOneof("kind")
    return None if kind is None else (_CONSTRAINTS[kind], getattr(request.constraint, kind))


def _constraint(request: text_pb2.GenerateRequest, model: TextModel) -> Constraint | None:
    form = _form(request)
    return None if form is None else model.constraint(*form)


def _prompt(request: text_pb2.GenerateRequest) -> str | list[Message]:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        return request.prompt
    if kind == "chat":
        return [Message(role=m.role, content=m.content) for m in request.chat.messages]
    raise InvalidInputError("The request has neither a prompt nor a chat.")
