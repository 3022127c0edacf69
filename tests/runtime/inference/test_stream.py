"""``ModelStreamInfer`` from outside: a real server and our own stubs."""

import asyncio
import queue
import time
import urllib.request

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from outpost_runtime.server.inference.message import InferResponse
from outpost_runtime.server.inference.shared_memory import Regions
from outpost_runtime.server.inference.stream import answered

from tests.support.fixtures import CLASSIFIER, DECODER
from tests.support.serving import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    with serving(folder, [DECODER, CLASSIFIER], "--threads", "1") as running:
        yield running


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _text(identity="", *, text=b"Hello", stream=True, **parameters):
    request = pb.ModelInferRequest(model_name="tiny-decoder", id=identity)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    request.raw_input_contents.append(bytes([stream]))
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(request.parameters[name], kind, value)
    return request


def _tensors(identity="", columns=2):
    request = pb.ModelInferRequest(model_name="tiny-classifier", id=identity)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        request.inputs.add(name=name, datatype="INT64", shape=[1, columns])
        request.raw_input_contents.append(np.ones(columns, np.int64).tobytes())
    return request


def _texts(answers):
    raw = [answer.infer_response.raw_output_contents for answer in answers]
    return b"".join(contents[0][4:] for contents in raw if contents)


def test_every_answer_says_whether_it_is_the_last(stub):
    answers = list(stub.ModelStreamInfer(iter([_text(max_new_tokens=5)])))
    ends = [a.infer_response.parameters["triton_final_response"].bool_param for a in answers]
    assert ends[-1] is True
    assert not any(ends[:-1])
    assert answers[-1].infer_response.parameters["finish_reason"].string_param == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_the_end_comes_apart_where_that_is_asked_for(stub, stream):
    asked = {"max_new_tokens": 5, "triton_enable_empty_final_response": True}
    *answers, last = stub.ModelStreamInfer(iter([_text(stream=stream, **asked)]))
    assert last.infer_response.parameters["triton_final_response"].bool_param
    assert not last.infer_response.outputs
    assert all(answer.infer_response.outputs for answer in answers)
    assert len(answers) == 1 or stream
    whole = list(stub.ModelStreamInfer(iter([_text(stream=False, max_new_tokens=5)])))
    assert _texts(answers) == _texts(whole)


def test_models_with_one_answer_give_it_in_the_order_of_the_requests(stub):
    requests = [_tensors(str(n), columns=1 + 97 * n % 100) for n in range(150)]
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [str(n) for n in range(150)]


class _Models:
    """Stands for a server's models: ``text`` is decoupled, ``slow`` waits until it may go on."""

    def __init__(self):
        self.go = asyncio.Event()

    async def is_decoupled(self, request):
        return request.model == "text"

    async def stream(self, request, _seconds_left):
        yield InferResponse(model=request.model, version="1", id=request.id, outputs=())

    async def infer(self, request, _seconds_left):
        if request.model == "slow":
            await self.go.wait()
        return InferResponse(model=request.model, version="1", id=request.id, outputs=())


def test_a_text_in_between_changes_nothing_of_the_order_of_the_others():
    async def ask():
        for model in ("slow", "text", "fast"):
            yield pb.ModelInferRequest(model_name=model, id=model)

    async def main():
        models = _Models()
        asyncio.get_running_loop().call_later(0.2, models.go.set)
        answers = answered(models, ask(), Regions(), None)
        return [answer.infer_response.id async for answer in answers]

    assert asyncio.run(main()) == ["text", "slow", "fast"]


def test_what_is_wrong_with_one_request_does_not_end_the_stream(stub):
    wrong = _tensors("wrong")
    wrong.inputs[0].shape[0] = 7
    reserved = _tensors("reserved")
    reserved.parameters["triton_other"].bool_param = True
    requests = [
        _tensors("first"),
        wrong,
        reserved,
        _text("bad", max_new_tokens=0),
        _tensors("last"),
    ]
    answers = {a.infer_response.id: a for a in stub.ModelStreamInfer(iter(requests))}
    assert set(answers) == {"first", "wrong", "reserved", "bad", "last"}
    assert "bytes" in answers["wrong"].error_message
    assert "reserved" in answers["reserved"].error_message
    assert "at least 1" in answers["bad"].error_message
    assert not answers["first"].error_message + answers["last"].error_message


def test_an_output_that_is_named_twice_comes_once(stub):
    request = _tensors()
    for _ in range(1000):
        request.outputs.add(name="logits")
    assert len(stub.ModelInfer(request).outputs) == 1


def test_made_up_inputs_in_shared_memory_are_refused_before_they_are_read(stub):
    request = pb.ModelInferRequest(model_name="tiny-classifier")
    for number in range(20):
        tensor = request.inputs.add(name=f"x{number}", datatype="UINT8", shape=[1 << 24])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 1 << 24
    with pytest.raises(grpc.RpcError, match="larger than") as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_name_does_not_hide_the_status(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(pb.ModelInferRequest(model_name="x" * 100_000))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_what_is_no_message_ends_the_stream_after_what_came_before(server):
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(method)(iter([_tensors("1").SerializeToString(), b"\xff"]))
        first = pb.ModelStreamInferResponse.FromString(next(call))
        assert first.infer_response.id == "1"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _live(server):
    with urllib.request.urlopen(server.metrics) as response:  # noqa: S310 - it is our own
        lines = response.read().decode().splitlines()
    line = next(
        line for line in lines if line.startswith('outpost_text_live{model="tiny-decoder"}')
    )
    return float(line.rpartition(" ")[2])


def test_a_vanished_client_stops_everything_that_it_asked(stub, server):
    requests = queue.Queue()
    call = stub.ModelStreamInfer(iter(requests.get, None))
    for n in range(3):
        requests.put(_text(str(n)))
    next(call)
    assert _live(server) > 0
    call.cancel()
    requests.put(None)
    until = time.monotonic() + 5
    while _live(server) and time.monotonic() < until:
        time.sleep(0.02)
    assert _live(server) == 0
