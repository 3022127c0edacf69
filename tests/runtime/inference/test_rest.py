"""The HTTP form's paths, in this process."""

import asyncio
import threading

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from outpost_runtime.server.inference.message import InferResponse
from outpost_runtime.server.inference.rest import InferenceRoutes


class _Inference:
    """Stands for a server's models and regions, and sees which thread reads shared memory."""

    def __init__(self):
        self.readers = []

    def regions_of(self, host):
        assert host == "127.0.0.1"
        return self

    def read(self, place):
        self.readers.append(threading.current_thread())
        return bytes(place.byte_size)

    async def infer(self, request, _seconds_left):
        assert request.feeds["x"].tolist() == np.zeros(8).tolist()
        return InferResponse(model="m", version="1", id="", outputs=())


@pytest.mark.parametrize("name", ["shared_memory_region", r"shared\u005fmemory_region"])
def test_shared_memory_is_not_read_on_the_event_loop_however_small_the_body(name):
    body = (
        '{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [8], "parameters": '
        '{"REGION": "r", "shared_memory_byte_size": 8}}]}'
    ).replace("REGION", name)
    inference = _Inference()

    async def main():
        app = web.Application()
        InferenceRoutes(inference).add_to(app)
        async with TestClient(TestServer(app)) as client:
            return (await client.post("/v2/models/m/infer", data=body)).status

    assert asyncio.run(main()) == 200
    (reader,) = inference.readers
    assert reader is not threading.main_thread()
