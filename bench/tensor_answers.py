"""Are the servers' answers the same? Equal quality, or a speed does not count."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from numpy.typing import NDArray
from outpost_runtime.sessions.ort import OrtSession

from bench.tensor_material import Model, feeds

CALLERS = 8
"""Who ask side by side, so that servers which make batches make them here too."""

_SECONDS = 60


def reference(model: Model) -> list[NDArray[np.float32]]:
    """Return what ONNX Runtime says in this process, one request at a time."""
    session = OrtSession(model.graph, threads=model.threads)
    name = model.outputs[0].name
    values = [session.run(feeds(request))[name] for request in model.requests]
    session.close()
    return [np.asarray(value, np.float32) for value in values]


def largest_difference(model: Model, address: str, expected: list[NDArray[np.float32]]) -> float:
    """Return how far any value of any answer of a server is from what is expected."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(CALLERS) as callers:
        call = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        answers = list(callers.map(_asking(call), model.requests))
    pairs = zip(answers, expected, strict=True)
    return max(float(np.abs(answer - value).max()) for answer, value in pairs)


def _asking(
    call: Callable[..., pb.ModelInferResponse],
) -> Callable[[bytes], NDArray[np.float32]]:
    def ask(request: bytes) -> NDArray[np.float32]:
        answer = call(pb.ModelInferRequest.FromString(request), timeout=_SECONDS)
        tensor = answer.outputs[0]
        raw = answer.raw_output_contents
        values = np.frombuffer(raw[0], "<f4") if raw else np.array(tensor.contents.fp32_contents)
        return np.asarray(values.reshape(tensor.shape), np.float32)

    return ask
