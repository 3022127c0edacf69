"""Text models over this protocol: ``text_input`` and parameters in, ``text_output`` out.

A text model is *decoupled*: with ``stream`` it gives one response per piece of text, without
it one for all; the last one says that it is the last, or an empty one behind it does, if that
is asked for. How the text is made is said by the request's parameters, in the names of
``outpost.v1.GenerationParameters``; ``stop`` is one text, or a JSON list of texts. The last
response has the finish reason, the numbers of tokens and the times, in microseconds as the
protocol has them, as parameters.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from outpost.v1 import text_pb2

from outpost_runtime.errors import InvalidInputError
from outpost_runtime.priority import Priority
from outpost_runtime.raw_tensors import of_elements
from outpost_runtime.server.generation import Generation
from outpost_runtime.server.inference.message import (
    InferRequest,
    InferResponse,
    OutputTensor,
    Parameter,
)
from outpost_runtime.server.inference.parameters import IS_FINAL, WANTS_FINAL, priority_of, take
from outpost_runtime.tensors import Array
from outpost_runtime.text.request import FinishEvent

_NUMBERS: dict[int, Callable[[str], float]] = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_UINT64: int,
    FieldDescriptor.CPPTYPE_FLOAT: float,
}
_SAMPLING = {
    field.name: _NUMBERS[field.cpp_type]
    for field in text_pb2.GenerationParameters.DESCRIPTOR.fields
    if field.cpp_type in _NUMBERS
}
_PRIORITIES = {
    Priority.INTERACTIVE: text_pb2.PRIORITY_INTERACTIVE,
    Priority.BATCH: text_pb2.PRIORITY_BATCH,
}
_ALIASES = {"max_tokens": "max_new_tokens"}
_FORMS = ("json_schema", "regex", "grammar")
_TEXTS = ("adapter", "stop", *_FORMS)
_LONGEST_STOPS = 1 << 15
_OWN = ("apply_chat_template", "priority", "timeout", WANTS_FINAL)


async def answers(
    request: InferRequest, version: str, generation: Generation, seconds_left: float | None
) -> AsyncGenerator[InferResponse, None]:
    """Yield the responses to a request for text.

    Raises:
        OutpostError: The request is refused, or fails.
    """
    message, streams = to_generate(request)
    ends_apart = take(request.parameters, WANTS_FINAL, bool, False)
    held: list[str] = []

    def response(
        outputs: tuple[OutputTensor, ...], parameters: Mapping[str, Parameter]
    ) -> InferResponse:
        return InferResponse(
            model=request.model,
            version=version,
            id=request.id,
            outputs=outputs,
            parameters=parameters,
        )

    async with aclosing(generation.events(message, seconds_left)) as events:
        async for event in events:
            if not isinstance(event, FinishEvent):
                text = "".join([token.text for token in event])
                if streams and text:
                    yield response((_text_output(text),), {IS_FINAL: False})
                held += [] if streams else [text]
                continue
            held.append(event.text)
            rest: tuple[OutputTensor, ...] = (_text_output("".join(held)),)
            if ends_apart:
                if any(held) or not streams:
                    yield response(rest, {IS_FINAL: False})
                rest = ()
            yield response(rest, {**_summary(event), IS_FINAL: True})


def to_generate(request: InferRequest) -> tuple[text_pb2.GenerateRequest, bool]:
    """Return what is asked of the text engine, and whether piece by piece.

    Raises:
        InvalidInputError: An input is missing, unknown or of another shape, or a parameter
            is not known or not what it should be.
    """
    _check(request)
    text, streams = _inputs(request.feeds)
    parameters = {_ALIASES.get(name, name): value for name, value in request.parameters.items()}
    message = text_pb2.GenerateRequest(
        model=request.model,
        adapter=take(parameters, "adapter", str, ""),
        priority=_PRIORITIES[priority_of(parameters)],
    )
    if take(parameters, "apply_chat_template", bool, False):
        message.chat.messages.add(role="user", content=text)
    else:
        message.prompt = text
    for name, kind in _SAMPLING.items():
        if name in parameters:
            _set_number(message.parameters, name, kind, parameters[name])
    if "stop" in parameters:
        message.parameters.stop.extend(_stops(take(parameters, "stop", str, "")))
    for form in _FORMS:
        if form in parameters:
            setattr(message.constraint, form, take(parameters, form, str, ""))
    return message, streams


def _stops(text: str) -> list[str]:
    """Return the texts of a JSON list; anything else is one text itself, such as "[END]"."""
    try:
        found = json.loads(text) if text.startswith("[") and len(text) < _LONGEST_STOPS else None
    except (ValueError, RecursionError):
        return [text]
    if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
        return found
    return [text]


def _check(request: InferRequest) -> None:
    known = {*_SAMPLING, *_ALIASES, *_TEXTS, *_OWN}
    for name in request.parameters:
        if name not in known:
            raise InvalidInputError(
                f"A text model has no parameter '{name}'; it has {', '.join(sorted(known))}."
            )
    for output in request.outputs:
        if output.name != "text_output" or output.classes or output.placement:
            raise InvalidInputError("A text model has the output 'text_output', which is sent.")


def _inputs(feeds: Mapping[str, Array]) -> tuple[str, bool]:
    for name, array in feeds.items():
        if name not in ("text_input", "stream"):
            raise InvalidInputError(
                f"The model has no input '{name}'; its inputs are text_input, stream."
            )
        if array.size != 1:
            raise InvalidInputError(f"Input '{name}' has {array.size} elements; it takes one.")
    if "text_input" not in feeds or feeds["text_input"].dtype != np.object_:
        raise InvalidInputError("Input 'text_input' is missing or not of datatype BYTES.")
    streams = feeds.get("stream", np.zeros(1, np.bool_))
    if streams.dtype != np.bool_:
        raise InvalidInputError("Input 'stream' is not of datatype BOOL.")
    try:
        return feeds["text_input"].item().decode(), bool(streams.item())
    except UnicodeDecodeError as error:
        raise InvalidInputError("Input 'text_input' is not UTF-8.") from error


def _set_number(
    message: text_pb2.GenerationParameters,
    name: str,
    kind: Callable[[str], float],
    value: Parameter,
) -> None:
    # Some clients have no parameters of type double and send text.
    try:
        setattr(message, name, kind(str(value)))
    except ValueError as error:  # protobuf's too, for what is out of range
        raise InvalidInputError(
            f"The parameter '{name}' is {value!r}, which it cannot be."
        ) from error


def _text_output(text: str) -> OutputTensor:
    return OutputTensor(
        name="text_output", datatype="BYTES", array=of_elements((1,), [text.encode()])
    )


def _summary(event: FinishEvent) -> dict[str, Parameter]:
    return {
        "finish_reason": event.reason.name.lower(),
        "prompt_tokens": event.prompt_tokens,
        "cached_tokens": event.cached_tokens,
        "generated_tokens": event.generated_tokens,
        "queue_microseconds": round(event.queue_seconds * 1e6),
        "prefill_microseconds": round(event.prefill_seconds * 1e6),
        "decode_microseconds": round(event.decode_seconds * 1e6),
    }
