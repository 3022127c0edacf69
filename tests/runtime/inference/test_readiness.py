"""What is said of a model while it is being opened."""

import asyncio
import threading

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from inference import grpc_service_pb2 as pb
from outpost_runtime.models import Models
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.server.inference.core import Inference
from outpost_runtime.server.inference.rest import InferenceRoutes
from outpost_runtime.server.inference.service import InferenceService
from outpost_runtime.store import Store

from tests.support.fixtures import CLASSIFIER

MODEL = CLASSIFIER.name


async def _ready(inference):
    """What gRPC and HTTP say."""
    app = web.Application()
    InferenceRoutes(inference).add_to(app)
    over_grpc = await InferenceService(inference).ModelReady(pb.ModelReadyRequest(name=MODEL), None)
    async with TestClient(TestServer(app)) as client:
        over_http = await client.get(f"/v2/models/{MODEL}/ready")
        return over_grpc.ready, over_http.status, (await over_http.json())["ready"]


def test_a_model_that_is_being_opened_is_not_ready_yet(tmp_path, monkeypatch):
    opening, go = threading.Event(), threading.Event()

    def slowly(*arguments):
        opening.set()
        assert go.wait(20)
        return open_model(*arguments)

    monkeypatch.setattr("outpost_runtime.models.open_model", slowly)
    store = Store(tmp_path / "store")
    store.add(CLASSIFIER)
    models = Models(store, lambda _: ModelSettings(threads=1))
    inference = Inference(models, generation=None, crossing=None)
    loading = threading.Thread(target=models.load, args=(MODEL,))
    loading.start()
    assert opening.wait(20)
    assert asyncio.run(_ready(inference)) == (False, 400, False)
    go.set()
    loading.join()
    assert asyncio.run(_ready(inference)) == (True, 200, True)
    inference.close()
    models.close()
