"""The protocol's own stubs, as the package open-inference-grpc has them."""

import importlib
import json
import sys

import grpc

protocol = importlib.import_module("open_inference.grpc.protocol")
service = importlib.import_module("open_inference.grpc.service")

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = service.GRPCInferenceServiceStub(channel)
    request = protocol.ModelInferRequest(model_name="tiny-classifier", id="7")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        tensor = request.inputs.add(name=name, datatype="INT64", shape=[1, 2])
        tensor.contents.int64_contents.extend([1, 1])
    answer = stub.ModelInfer(request)
    ready = stub.ModelReady(protocol.ModelReadyRequest(name="tiny-classifier"))
    print(
        json.dumps(
            {
                "id": answer.id,
                "shape": list(answer.outputs[0].shape),
                "bytes": len(answer.raw_output_contents[0]),
                "ready": ready.ready,
            }
        )
    )
