"""A text model apart behind a real server: its process is killed while it answers."""

import os
import shutil
import signal
import threading
import time

import grpc
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from outpost.v1 import text_pb2, text_pb2_grpc

from tests.support.fixtures import ADAPTERS, DECODER
from tests.support.processes import children_of
from tests.support.serving import serving

APART, OTHER = "tiny-decoder", "other-decoder"
ONE = ADAPTERS[0].name


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    other = folder / OTHER
    shutil.copytree(DECODER, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{APART}"', f'"{OTHER}"'))
    config = folder / "outpost.toml"
    config.write_text(f"[models.{APART}]\napart = true\n")
    options = ("--threads", "1", "--streams", "4", "--kv-memory", "16", "--config", str(config))
    with serving(folder, [DECODER, other, ADAPTERS[0]], *options) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def _request(model=APART, adapter="", count=200):
    return text_pb2.GenerateRequest(
        model=model,
        adapter=adapter,
        prompt="The gate of press two does not close.",
        return_tokens=True,
        parameters=text_pb2.GenerationParameters(max_new_tokens=count),
    )


def _answer(channel, *about):
    stream = text_pb2_grpc.TextStub(channel).Generate(_request(*about))
    return [token.id for response in stream for token in response.piece.tokens]


class Asker(threading.Thread):
    """Asks a model again and again, in answers that are streamed, and notes how they ended."""

    def __init__(self, channel, *about):
        super().__init__(daemon=True)
        self._channel, self._about = channel, about
        self._enough = threading.Event()
        self.answers = []
        self.broken = []  # tokens that had come, and the code

    def run(self):
        while not self._enough.is_set():
            tokens = []
            try:
                stream = text_pb2_grpc.TextStub(self._channel).Generate(_request(*self._about))
                for response in stream:
                    tokens += [token.id for token in response.piece.tokens]
                self.answers.append(tokens)
            except grpc.RpcError as error:
                self.broken.append((len(tokens), error.code()))
                time.sleep(0.05)

    def end(self):
        self._enough.set()
        self.join(20)
        assert not self.is_alive()


def _until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def _wait_for_more(askers, what):
    before = [len(what(asker)) for asker in askers]
    _until(lambda: all(len(what(a)) > n for a, n in zip(askers, before, strict=True)))


def _kill_while_it_streams(server, askers):
    """Kill the model's processes until that broke an answer of which a part had come."""
    for _ in range(5):
        _wait_for_more(askers, lambda asker: asker.answers)
        for number in children_of(server.process.pid):
            os.kill(number, signal.SIGKILL)
        _wait_for_more(askers, lambda asker: asker.broken)
        if any(count for asker in askers for count, _ in asker.broken):
            return
    raise AssertionError("no answer was broken in its middle")


def test_a_kill_in_a_streamed_answer_is_noticed_by_that_models_clients_only(server, channel):
    wanted = {about: _answer(channel, *about) for about in ((APART,), (OTHER,), (APART, ONE))}
    concerned = [Asker(channel, APART) for _ in range(2)]
    others = [Asker(channel, OTHER) for _ in range(2)]
    for asker in (*concerned, *others):
        asker.start()
    _kill_while_it_streams(server, concerned)
    _wait_for_more(concerned, lambda asker: asker.answers)
    for asker in (*concerned, *others):
        asker.end()
    codes = {code for asker in concerned for _, code in asker.broken}
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    assert [asker.broken for asker in others] == [[], []]
    for about, askers in (((APART,), concerned), ((OTHER,), others)):
        assert all(answer == wanted[about] for asker in askers for answer in asker.answers)
    assert _answer(channel, APART, ONE) == wanted[APART, ONE]


def test_unloading_ends_its_processes_and_loading_starts_them_again(server, channel):
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    wanted, before = _answer(channel, APART), children_of(server.process.pid)
    assert len(before) == 2  # one for each graph
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=APART))
    assert children_of(server.process.pid) == []
    assert _answer(channel, OTHER)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=APART))
    assert len(children_of(server.process.pid)) == 1  # none has an adapter yet
    assert _answer(channel, APART) == wanted
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=ONE))
    assert _answer(channel, APART, ONE)
