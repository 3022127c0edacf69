"""A server, its store and commands beside it, as an operator has them: real processes."""

import subprocess
import sys
import threading
import time

import grpc
import pytest
from outpost.v1 import text_pb2, text_pb2_grpc
from outpost_runtime.budget import expected_bytes
from outpost_runtime.bundle import read_bundle
from outpost_runtime.opening import ModelSettings
from outpost_runtime.store import Store
from outpost_runtime.text.limits import TextLimits

from tests.support.candidates import spoiled, version_of
from tests.support.fixtures import DECODER
from tests.support.fleet import Fleet
from tests.support.serving import serving_store

_NAME = "tiny-decoder"
_SMALL = ("--kv-memory", "16", "--threads", "1")
_SMALL_LIMITS = TextLimits(memory_bytes=16 << 20)


@pytest.fixture
def site(tmp_path_factory):
    """A repository in a folder, and the store of a box that follows it."""
    folder = tmp_path_factory.mktemp("site")
    fleet = Fleet(now=int(time.time()))
    fleet.box(folder / "store", sources=(str(folder / "repo"),))
    fleet.publish(read_bundle(DECODER))
    fleet.write(folder / "repo")
    return fleet, folder


def _outpost(*arguments):
    command = [sys.executable, "-m", "outpost_runtime.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def _answer(address, tokens):
    with grpc.insecure_channel(address) as channel:
        stub = text_pb2_grpc.TextStub(channel)
        parameters = text_pb2.GenerationParameters(max_new_tokens=tokens, temperature=0.0)
        request = text_pb2.GenerateRequest(model=_NAME, prompt="a b c", parameters=parameters)
        yield from stub.Generate(request)


class _Callers:
    """Callers that never stop asking while the context lasts."""

    def __init__(self, address, count=2):
        self.failures, self.answers = [], 0
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self):
        while not self._stop.is_set():
            try:
                self.answers += bool(list(_answer(self._address, 40)))
            except grpc.RpcError as error:
                self.failures.append(error)
                self._stop.wait(0.1)


@pytest.mark.slow
@pytest.mark.incident("requests under way", where="sync, refusal and rollback beside a server")
@pytest.mark.parametrize("models", [2, 1.5])
def test_an_operator_s_day(site, tmp_path, models):
    """Nobody's request fails, also where the old model has to go before the new one comes."""
    fleet, folder = site
    expected = expected_bytes(read_bundle(DECODER), ModelSettings(text=_SMALL_LIMITS))
    memory = ("--memory", str(int(models * expected) + (2 << 20) >> 20))
    store, config = folder / "store", tmp_path / "outpost.toml"
    config.write_text(f'[update]\nonly_while = "{tmp_path}/never"\n')  # else the agent may be first
    first = _outpost("sync", "--store", store)
    assert first.returncode == 0, first.stderr
    assert f"{_NAME} {read_bundle(DECODER).digest[:12]}: active, on probation" in first.stdout
    options = ("--config", str(config), *_SMALL, *memory)
    with serving_store(store, tmp_path / "log", *options) as server:
        with _Callers(server.address) as callers:
            second = version_of(DECODER, tmp_path, "2")
            fleet.publish(second)
            fleet.write(folder / "repo")
            synced = _outpost("sync", "--store", store)
            assert "active, on probation" in synced.stdout, synced.stdout + synced.stderr
            fleet.publish(spoiled(DECODER, tmp_path, "3"))
            fleet.write(folder / "repo")
            refused = _outpost("sync", "--store", store)
            assert refused.returncode == 1
            assert "refused: " in refused.stdout
            assert Store(store).slot(_NAME).active == second.digest
            back = _outpost("rollback", _NAME, "--store", store)
            assert back.returncode == 0, back.stderr
            time.sleep(3)
        assert callers.failures == []
        assert callers.answers > 2
    log = (tmp_path / "log").read_text()
    assert ("the old one goes before the new one comes" in log) == (models < 2)
    assert Store(store).slot(_NAME).active == read_bundle(DECODER).digest
    words = [line["what"] for line in Store(store).history()]
    assert words == ["staged", "activated", "staged", "activated", "staged", "refused", "back"]
    status = _outpost("export-status", tmp_path, "--store", store)
    assert status.returncode == 0, status.stderr


@pytest.mark.slow
def test_a_server_with_nothing_to_serve_waits_for_its_first_update_and_follows(tmp_path):
    fleet = Fleet(now=int(time.time()))
    store, config = tmp_path / "store", tmp_path / "outpost.toml"
    fleet.box(store, sources=(str(tmp_path / "repo"),))
    fleet.write(tmp_path / "repo")
    config.write_text("[update]\nevery_minutes = 0.01\nprobation_minutes = 0.01\n")
    first, second = read_bundle(DECODER), version_of(DECODER, tmp_path, "2")
    with serving_store(store, tmp_path / "log", "--config", str(config), *_SMALL) as server:
        for bundle in (first, second):
            fleet.publish(bundle)
            fleet.write(tmp_path / "repo")
            _until(lambda wanted=bundle: _is_committed(store, wanted))
            assert list(_answer(server.address, 5))
    assert Store(store).slot(_NAME).previous == first.digest


def _is_committed(store, bundle):
    slot = Store(store).slots().get(_NAME)
    return slot is not None and slot.active == bundle.digest and slot.probation is None


def _until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
