"""Real ONNX models behind the server: sequences, classes, a crash, and memory that comes back."""

import os
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from outpost_runtime.bundle import read_bundle
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.tensors import NUMPY_TYPES, datatype_of

from examples import bundles
from examples.base_models.onnx_models import features, frames
from examples.base_models.voice import RATE, silence, speak
from tests.support.serving import serving

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

_MODELS = ("silero-vad", "magika", "pp-ocr-det", "pp-ocr-rec", "all-minilm-l6-v2")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    config = folder / "outpost.toml"
    config.write_text("[models.magika]\napart = true\n")
    paths = [bundles.path_of(name, "cpu-fp32") for name in _MODELS]
    with serving(folder, paths, "--config", str(config)) as running:
        yield running


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _request(model, parameters=None, **tensors):
    request = pb.ModelInferRequest(model_name=model)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name, value in (parameters or {}).items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(request.parameters[name], kind, value)
    return request


def _outputs(answer):
    return {
        output.name: np.frombuffer(raw, NUMPY_TYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def _alone(sound):
    session = OrtSession(read_bundle(bundles.path_of("silero-vad", "cpu-fp32")).path("model.onnx"))
    state = np.zeros((2, 1, 128), np.float32)
    for frame in frames(sound):
        feeds = {"input": frame, "state": state, "sr": np.array(RATE, np.int64)}
        outputs = session.run(feeds)
        state = outputs["stateN"]
        yield float(outputs["output"][0, 0])


def test_two_voices_are_heard_at_once_and_each_has_its_own_memory(stub):
    spoken, quiet = speak("aiu"), silence(len(speak("aiu")) / RATE)
    names = {t.name for t in stub.ModelMetadata(pb.ModelMetadataRequest(name="silero-vad")).inputs}
    assert names == {"input", "sr"}  # the state is nobody's business but the server's
    heard = {1: [], 2: []}
    pairs = list(zip(frames(spoken), frames(quiet), strict=True))
    for step, pair in enumerate(pairs):
        for sequence, frame in enumerate(pair, 1):
            parameters = {
                "sequence_id": sequence,
                "sequence_start": step == 0,
                "sequence_end": step == len(pairs) - 1,
            }
            request = _request("silero-vad", parameters, input=frame, sr=np.array(RATE))
            heard[sequence].append(float(_outputs(stub.ModelInfer(request))["output"][0, 0]))
    assert heard[1] == pytest.approx(list(_alone(spoken)), abs=1e-6)
    assert heard[2] == pytest.approx(list(_alone(quiet)), abs=1e-6)
    with pytest.raises(grpc.RpcError, match="not known") as caught:
        stub.ModelInfer(
            _request("silero-vad", {"sequence_id": 1}, input=pairs[0][0], sr=np.array(RATE))
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _kind_of(stub, content):
    request = _request("magika", bytes=features(content))
    request.outputs.add(name="target_label").parameters["classification"].int64_param = 1
    (raw,) = stub.ModelInfer(request).raw_output_contents
    return raw[4:].decode().rpartition(":")[2]


def _worker_of(server):
    threads = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    found = [
        int(child)
        for children in threads
        for child in children.read_text().split()
        if b"sessions.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found[0] if found else None


def test_a_killed_model_fails_alone_and_comes_back(stub, server):
    source = Path(__file__).read_bytes()
    assert _kind_of(stub, source) == "python"
    killed = _worker_of(server)
    os.kill(killed, signal.SIGKILL)
    refused, neighbours = [], 0
    until = time.monotonic() + 60
    while time.monotonic() < until:
        neighbour = _request("pp-ocr-rec", x=np.zeros((1, 3, 48, 32), np.float32))
        neighbours += bool(stub.ModelInfer(neighbour).outputs)  # an error here fails the test
        try:
            kind = _kind_of(stub, source)
        except grpc.RpcError as error:
            refused.append(error.code())
        else:
            if refused:
                break
    assert kind == "python"
    assert set(refused) == {grpc.StatusCode.UNAVAILABLE}
    assert neighbours > len(refused) / 2
    assert _worker_of(server) not in (None, killed)


def test_a_line_of_text_is_found_and_its_scores_come_back(stub):
    image = np.zeros((1, 3, 64, 64), np.float32)
    (found,) = _outputs(stub.ModelInfer(_request("pp-ocr-det", x=image))).values()
    assert found.shape == (1, 1, 64, 64)


def _resident(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def test_unloading_gives_at_least_95_percent_of_the_memory_back(stub, server):
    name = "all-minilm-l6-v2"

    def use():
        names = [t.name for t in stub.ModelMetadata(pb.ModelMetadataRequest(name=name)).inputs]
        tensors = {n: np.ones((16, 128), np.int64) for n in names}
        stub.ModelInfer(_request(name, **tensors))

    use()
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name))
    before = _resident(server)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))
    use()
    loaded = _resident(server)
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name))
    after = _resident(server)
    taken, returned = loaded - before, loaded - after
    until = time.monotonic() + 10  # the last answer's caller may hold something for a moment
    while returned < 0.95 * taken and time.monotonic() < until:
        time.sleep(0.1)
        returned = loaded - _resident(server)
    assert taken > 80_000  # kB: its weights alone are 91 MB
    assert returned >= 0.95 * taken
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))
