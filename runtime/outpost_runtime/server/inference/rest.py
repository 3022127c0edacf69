"""The protocol over HTTP: ``/v2/…``. Bodies in, bodies out; what they mean is core's.

Source: the protocol's HTTP form, and Triton's extensions of it: binary tensors, model
repository, statistics, configuration, shared memory, generate.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
from aiohttp import web
from google.protobuf.message import Message

from outpost_runtime.documents import Reader, parse_json_object
from outpost_runtime.errors import InvalidInputError, OutpostError, UnsupportedError
from outpost_runtime.raw_tensors import of_elements
from outpost_runtime.server.bad_clients import read_body
from outpost_runtime.server.inference import json_form
from outpost_runtime.server.inference.core import (
    NO_CUDA,
    NO_LOG_SETTINGS,
    NO_TRACES,
    Inference,
)
from outpost_runtime.server.inference.json_form import parameters_of
from outpost_runtime.server.inference.message import InferRequest, InferResponse
from outpost_runtime.server.inference.parameters import WANTS_FINAL
from outpost_runtime.server.waiting import aside_if_large

_TRUE, _FALSE = np.ones(1, np.bool_), np.zeros(1, np.bool_)

JSON_LENGTH = "Inference-Header-Content-Length"

_NOT_HERE = (
    ("/v2/cudasharedmemory/{rest:.*}", NO_CUDA),
    ("/v2/trace/setting", NO_TRACES),
    ("/v2/models/{model}/trace/setting", NO_TRACES),
    ("/v2/logging", NO_LOG_SETTINGS),
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InferenceRoutes:
    """Handlers of the paths."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def add_to(self, app: web.Application) -> None:
        """Register every path."""
        regions = "/v2/systemsharedmemory"
        routes: list[tuple[str, str, _Handler]] = [
            ("GET", "/v2", self._server),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._ready),
            ("GET", "/v2/models/stats", self._statistics),
            ("POST", "/v2/repository/index", self._index),
            ("POST", "/v2/repository/models/{model}/load", self._load),
            ("POST", "/v2/repository/models/{model}/unload", self._unload),
            ("GET", f"{regions}/status", self._region_status),
            ("GET", f"{regions}/region/{{region}}/status", self._region_status),
            ("POST", f"{regions}/region/{{region}}/register", self._register),
            ("POST", f"{regions}/region/{{region}}/unregister", self._unregister),
            ("POST", f"{regions}/unregister", self._unregister),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                ("GET", prefix, self._metadata),
                ("GET", f"{prefix}/ready", self._model_ready),
                ("GET", f"{prefix}/config", self._config),
                ("GET", f"{prefix}/stats", self._statistics),
                ("POST", f"{prefix}/infer", self._infer),
                ("POST", f"{prefix}/generate", self._generate),
                ("POST", f"{prefix}/generate_stream", self._generate_stream),
            ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        for path, sentence in _NOT_HERE:
            app.router.add_route("*", path, _refusing(sentence))

    async def _server(self, _: web.Request) -> web.Response:
        return _json(self._inference.server())

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._inference.ready
        return web.json_response({"ready": ready}, status=200 if ready else 400)

    async def _model_ready(self, request: web.Request) -> web.Response:
        model, version = _named(request)
        ready = self._inference.is_model_ready(model, version)
        return web.json_response({"name": model, "ready": ready}, status=200 if ready else 400)

    async def _metadata(self, request: web.Request) -> web.Response:
        return _json(self._inference.metadata(*_named(request)))

    async def _config(self, request: web.Request) -> web.Response:
        return _json(self._inference.configuration(*_named(request)))

    async def _statistics(self, request: web.Request) -> web.Response:
        return _json(self._inference.statistics(*_named(request)))

    async def _infer(self, request: web.Request) -> web.Response:
        model, version = _named(request)
        body, length = await read_body(request), _json_length(request)
        regions = self._inference.regions_of(_host(request))

        def decode() -> InferRequest:
            return json_form.decode(body, length, model=model, version=version, regions=regions)

        asked = await aside_if_large(json_form.size_of(body), decode)
        response = await self._inference.infer(asked, None)
        return await aside_if_large(response.weight, lambda: _answer(response, asked))

    async def _generate(self, request: web.Request) -> web.Response:
        asked = await _text_request(request, streams=False)
        async with aclosing(self._inference.stream(asked, None)) as responses:
            answers = [_flat(response) async for response in responses]
        return web.json_response(answers[-1])

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, one JSON object each; an error in midstream is one, too."""
        asked = await _text_request(request, streams=True)
        async with aclosing(self._inference.stream(asked, None)) as responses:
            return await _send_events(request, responses)

    async def _index(self, request: web.Request) -> web.Response:
        reader = await _table(request)
        found = await self._inference.index("", ready_only=reader.boolean("ready", default=False))
        return web.json_response(json_form.plain(found)["models"])

    async def _load(self, request: web.Request) -> web.Response:
        reader = await _table(request)
        await self._inference.load(
            "", request.match_info["model"], parameters=bool(reader.raw().get("parameters"))
        )
        return web.Response()

    async def _unload(self, request: web.Request) -> web.Response:
        await self._inference.unload("", request.match_info["model"])
        return web.Response()

    async def _region_status(self, request: web.Request) -> web.Response:
        found = self._inference.shared_memory(request.match_info.get("region", ""), _host(request))
        return web.json_response(list(json_form.plain(found)["regions"].values()))

    async def _register(self, request: web.Request) -> web.Response:
        reader = await _table(request)
        key, offset = reader.string("key"), reader.integer("offset", 0)
        size = reader.integer("byte_size")
        reader.end()
        regions = self._inference.regions_of(_host(request))
        regions.register(request.match_info["region"], key, offset, size)
        return web.Response()

    async def _unregister(self, request: web.Request) -> web.Response:
        regions = self._inference.regions_of(_host(request))
        regions.unregister(request.match_info.get("region", ""))
        return web.Response()


def _host(request: web.Request) -> str:
    return request.remote or ""


def _refusing(sentence: str) -> _Handler:
    async def refuse(_: web.Request) -> web.StreamResponse:
        raise UnsupportedError(sentence)

    return refuse


def _answer(response: InferResponse, asked: InferRequest) -> web.Response:
    body, length = json_form.encode(response, asked)
    if length is None:
        answer = web.Response(body=body, content_type="application/json")
    else:
        answer = web.Response(body=body, content_type="application/octet-stream")
        answer.headers[JSON_LENGTH] = str(length)
    answer.enable_compression()  # as far as the client accepts it
    return answer


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info.get("model", ""), request.match_info.get("version", "")


def _json(message: Message) -> web.Response:
    return web.json_response(json_form.plain(message))


def _json_length(request: web.Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", text):
        raise InvalidInputError(f"The header {JSON_LENGTH} is no number.")
    return int(text)


async def _table(request: web.Request) -> Reader:
    body = await read_body(request)
    return parse_json_object(body or b"{}", path="request")


async def _text_request(request: web.Request, *, streams: bool) -> InferRequest:
    """Read a body of the generate extension: a text, and parameters beside it or in a table."""
    model, version = _named(request)
    reader = await _table(request)
    text, identity = reader.string("text_input"), reader.string("id", "")
    reader.boolean("stream", default=streams)
    table = reader.optional("parameters", reader.table)
    parameters = parameters_of(reader) | (parameters_of(table) if table else {})
    parameters.pop("stream", None)  # some say it in both places; the path decides
    if WANTS_FINAL in parameters:
        raise InvalidInputError(f"{WANTS_FINAL} is for streams of the gRPC form.")
    feeds = {
        "text_input": of_elements((1,), [text.encode()]),
        "stream": _TRUE if streams else _FALSE,
    }
    return InferRequest(
        model=model, version=version, id=identity, feeds=feeds, parameters=parameters
    )


def _flat(response: InferResponse) -> dict[str, Any]:
    document = json_form.described(response)
    del document["outputs"]
    for output in response.outputs:
        document[output.name] = output.array.item().decode()
    return document


async def _send_events(
    request: web.Request, responses: AsyncIterator[InferResponse]
) -> web.StreamResponse:
    first = await anext(responses)  # what is refused has a status of its own
    stream = web.StreamResponse(headers={"Cache-Control": "no-cache"})
    stream.content_type = "text/event-stream"
    await stream.prepare(request)
    try:
        await _send_event(stream, _flat(first))
        async for response in responses:
            await _send_event(stream, _flat(response))
    except OutpostError as error:
        await _send_event(stream, {"error": str(error)})
    return stream


async def _send_event(stream: web.StreamResponse, event: dict[str, Any]) -> None:
    await stream.write(b"data: " + json.dumps(event).encode() + b"\n\n")
